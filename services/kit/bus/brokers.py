"""How a Kafka client connects and authenticates. Only this module knows the client options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError

MECHANISM = "SCRAM-SHA-512"
"""Neither side reveals its secret, so an impostor in the broker's place does not get the password."""


@dataclass(frozen=True, slots=True)
class Brokers:
    """Addresses and credentials. The password stays in its file and is read again for each new client."""

    bootstrap: str
    """host:port of the brokers, comma-separated."""
    user: str | None = None
    """Without a user, a client does not authenticate."""
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    """PEM file of the CA certificates that sign the brokers' certificates; None uses the system's."""

    @classmethod
    def of(cls, brokers: Brokers | str) -> Brokers:
        """The brokers; also accepts a bare `host:port,host:port`."""
        return cls(brokers) if isinstance(brokers, str) else brokers

    def __str__(self) -> str:
        """The addresses."""
        return self.bootstrap

    def options(self) -> dict[str, Any]:
        """The arguments for any kafka-python client.

        Raises:
            FailedPreconditionError: the password file cannot be read.
        """
        options: dict[str, Any] = {"bootstrap_servers": self.bootstrap.split(",")}
        if self.user is not None:
            options |= {
                "sasl_mechanism": MECHANISM,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self._password(),
            }
        if self.tls and self.ca_file is not None:
            options["ssl_cafile"] = str(self.ca_file)
        if self.user is not None or self.tls:
            options["security_protocol"] = (
                f"{'SASL_' if self.user is not None else ''}{'SSL' if self.tls else 'PLAINTEXT'}"
            )
        return options

    def _password(self) -> str:
        if self.password_file is None:
            raise FailedPreconditionError(
                f"No password is set for the Kafka user {self.user}. Set TIDEMILL_KAFKA_PASSWORD_FILE.",
                reason="KAFKA_PASSWORD_MISSING",
            )
        try:
            return self.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise FailedPreconditionError(
                f"Cannot read the password of the Kafka user {self.user} from {self.password_file} "
                f"(TIDEMILL_KAFKA_PASSWORD_FILE): {error.strerror}.",
                reason="KAFKA_PASSWORD_MISSING",
            ) from error
