"""How a Kafka client reaches the brokers and says who it is: the one place that knows its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError

MECHANISM = "SCRAM-SHA-512"
"""Neither side learns the other's secret from it: who listens in the broker's place gets no password."""


@dataclass(frozen=True, slots=True)
class Brokers:
    """Addresses and credentials; the password stays in its file and is read for each new client."""

    bootstrap: str
    """host:port of the brokers, comma-separated."""
    user: str | None = None
    """Without one, a client says nothing of who it is."""
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    """PEM file of the authorities that sign the brokers' certificates; the system's when None."""

    @classmethod
    def of(cls, brokers: Brokers | str) -> Brokers:
        """The brokers, also of a bare `host:port,host:port`."""
        return cls(brokers) if isinstance(brokers, str) else brokers

    def __str__(self) -> str:
        """The addresses."""
        return self.bootstrap

    def options(self) -> dict[str, Any]:
        """The arguments of any client of kafka-python.

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
                f"Kafka's user {self.user} has no password: set TIDEMILL_KAFKA_PASSWORD_FILE.",
                reason="KAFKA_PASSWORD_MISSING",
            )
        try:
            return self.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise FailedPreconditionError(
                f"The password of Kafka's user {self.user} cannot be read from {self.password_file} "
                f"(TIDEMILL_KAFKA_PASSWORD_FILE): {error.strerror}.",
                reason="KAFKA_PASSWORD_MISSING",
            ) from error
