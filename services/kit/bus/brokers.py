"""How a Kafka client connects and authenticates. Only this module knows the client options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError

MECHANISM = "SCRAM-SHA-512"
"""Neither side reveals its secret, so an impostor in the broker's place does not get the password."""


class ProducerClient(StrEnum):
    """The library that a service sends with. Each reads the same topics, keys and partitions."""

    LIBRDKAFKA = "librdkafka"
    """confluent-kafka, in C: a quarter of the processor time of kafka-python for each message, or less."""
    KAFKA_PYTHON = "kafka-python"
    """For machines without a build of librdkafka."""


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
    client: ProducerClient = ProducerClient.LIBRDKAFKA

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
            options["security_protocol"] = self._protocol()
        return options

    def librdkafka_options(self) -> dict[str, str]:
        """The same for librdkafka.

        Raises:
            FailedPreconditionError: the password file cannot be read.
        """
        options = {"bootstrap.servers": self.bootstrap}
        if self.user is not None:
            options |= {
                "sasl.mechanism": MECHANISM,
                "sasl.username": self.user,
                "sasl.password": self._password(),
            }
        if self.tls:
            # "probe" finds the system's, which the OpenSSL inside the package does not know.
            options["ssl.ca.location"] = str(self.ca_file or "probe")
        if self.user is not None or self.tls:
            options["security.protocol"] = self._protocol()
        return options

    def _protocol(self) -> str:
        return f"{'SASL_' if self.user is not None else ''}{'SSL' if self.tls else 'PLAINTEXT'}"

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
