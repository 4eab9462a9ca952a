"""Access control of a mesh's Kafka: three users, their passwords, and the permissions of foreign producers.

`mesh` may do anything, `producer` may write to the inbound topics, `controller` is the broker itself at its controller.
Passwords are created at the first start, each in a file of Kafka's folder that only the mesh's user can read.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from infra.stack.addresses import HOST
from infra.stack.layout import Layout, State
from services.kit.bus.brokers import MECHANISM, Brokers
from services.kit.bus.topics import FEEDBACK_INBOUND, INBOUND

MESH, PRODUCER, CONTROLLER = "mesh", "producer", "controller"
_USERS = (MESH, PRODUCER, CONTROLLER)
PRODUCER_TRANSACTIONS = "producer."
"""Prefix of the transactional ids that foreign producers may use."""


def password_file(state: State, user: str) -> Path:
    """The file with the password of a user."""
    return state.kafka / f"{user}.password"


def place_passwords(state: State) -> dict[str, str]:
    """The password of each user, created if missing."""
    return {user: _place(password_file(state, user)) for user in _USERS}


def _place(path: Path) -> str:
    if not path.is_file() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def brokers(layout: Layout, port: int, user: str = MESH) -> Brokers:
    """Client settings to connect to this mesh's broker as one of the users."""
    return Brokers(f"{HOST}:{port}", user, password_file(layout.state, user))


def security(passwords: dict[str, str], legacy: bool) -> dict[str, str]:
    """The broker's settings for authentication and permissions.

    Args:
        passwords: by user.
        legacy: whether the storage was made without users: `mesh` may then also log in with its password in clear, so
            that `grant` can add it.
    """
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    mesh, controller = passwords[MESH], passwords[CONTROLLER]
    own = f'username="{CONTROLLER}" password="{controller}" user_{CONTROLLER}="{controller}"'
    values = {
        "listener.security.protocol.map": "BROKER:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "listener.name.broker.sasl.enabled.mechanisms": f"{MECHANISM},PLAIN" if legacy else MECHANISM,
        f"listener.name.broker.{MECHANISM.lower()}.sasl.jaas.config": (f'{scram} username="{MESH}" password="{mesh}";'),
        "sasl.mechanism.inter.broker.protocol": MECHANISM,
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": f"{plain} {own};",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{MESH};User:{CONTROLLER}",
    }
    if legacy:
        values["listener.name.broker.plain.sasl.jaas.config"] = f'{plain} user_{MESH}="{mesh}";'
    return values


def users_at_format(passwords: dict[str, str]) -> tuple[str, ...]:
    """The arguments that create the users when Kafka's storage is formatted."""
    return tuple(
        part
        for user in (MESH, PRODUCER)
        for part in ("--add-scram", f"{MECHANISM}=[name={user},password={passwords[user]}]")
    )


def client_properties(password: str, port: int) -> str:
    """The properties file for a Java client of a foreign producer."""
    module = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    return (
        "# A producer of CloudEvents: it may write to tidemill.inbound and tidemill.feedback.inbound, nothing else.\n"
        f"bootstrap.servers={HOST}:{port}\n"
        "security.protocol=SASL_PLAINTEXT\n"
        f"sasl.mechanism={MECHANISM}\n"
        f'sasl.jaas.config={module} username="{PRODUCER}" password="{password}";\n'
    )


def grant(layout: Layout, port: int) -> None:
    """Grants the producer's permissions, and adds the users to a storage of an earlier release; idempotent.

    Raises:
        KafkaError: the broker does not answer, or refuses.
    """
    from kafka import KafkaAdminClient
    from kafka.admin import (
        ACL,
        ACLOperation,
        ACLPermissionType,
        ACLResourcePatternType,
        ResourcePattern,
        ResourceType,
        UserScramCredentialUpsertion,
    )
    from kafka.errors import KafkaError

    options = brokers(layout, port).options()
    if is_legacy(layout.state):
        options["sasl_mechanism"] = "PLAIN"
    admin = KafkaAdminClient(**options, request_timeout_ms=3000, bootstrap_timeout_ms=3000)
    prefix = ResourcePattern(ResourceType.TRANSACTIONAL_ID, PRODUCER_TRANSACTIONS, ACLResourcePatternType.PREFIXED)
    topics = [ResourcePattern(ResourceType.TOPIC, topic.name) for topic in (INBOUND, FEEDBACK_INBOUND)]
    try:
        if is_legacy(layout.state):
            passwords = place_passwords(layout.state)
            failed = admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(user, MECHANISM, passwords[user]) for user in (MESH, PRODUCER)]
            )
            if any(failed.values()):
                raise KafkaError(f"users could not be added: {failed}")
            _known(layout.state).touch(mode=0o600)
        result = admin.create_acls(
            [
                ACL(f"User:{PRODUCER}", "*", operation, ACLPermissionType.ALLOW, resource)
                for resource in (*topics, prefix)
                for operation in (ACLOperation.WRITE, ACLOperation.DESCRIBE)
            ]
        )
    finally:
        admin.close()
    if result["failed"]:
        raise KafkaError(f"the producer's rights could not be set: {result['failed']}")


def is_legacy(state: State) -> bool:
    """Whether Kafka's storage was formatted by a release without users."""
    return (state.kafka / "data" / "meta.properties").is_file() and not _known(state).is_file()


def _known(state: State) -> Path:
    return state.kafka / "users-known"
