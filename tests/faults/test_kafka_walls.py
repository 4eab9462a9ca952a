"""Kafka authenticates everyone: what other users, a foreign producer and an impostor can do with the real broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from infra.stack import client, kafka_access
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import DEAD_LETTERS, FEEDBACK_INBOUND, INBOUND, RECORDS_RAW
from tests.faults.strangers import open_folder, read_by_others

pytestmark = pytest.mark.real

_QUICK = {"request_timeout_ms": 5000, "bootstrap_timeout_ms": 5000}
_NOBODY = {"security_protocol": "PLAINTEXT", "sasl_mechanism": None}


@pytest.fixture(scope="module")
def stack() -> Iterator[StackState]:
    with open_folder() as folder, running_parts({"kafka"}, folder / "state", own=True) as running:
        ensure_topics(mesh(running))
        yield running


def mesh(stack: StackState) -> Any:
    return kafka_access.brokers(stack.layout, stack.ports["kafka"])


def producer_options(stack: StackState) -> dict[str, Any]:
    return kafka_access.brokers(stack.layout, stack.ports["kafka"], kafka_access.PRODUCER).options()


def producer(stack: StackState, **options: Any) -> KafkaProducer:
    return KafkaProducer(**producer_options(stack), max_block_ms=10_000, **_QUICK, **options)


def admitted(attempts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts to connect as administrator that succeed; in parallel, since clients take long to give up."""

    def attempt(options: dict[str, Any]) -> bool:
        try:
            KafkaAdminClient(**options, **_QUICK).close()
        except (KafkaError, ValueError):
            return False
        return True

    with ThreadPoolExecutor(len(attempts)) as pool:
        return [options for options, inside in zip(attempts, pool.map(attempt, attempts), strict=True) if inside]


def test_a_stranger_without_a_password_gets_nothing(stack: StackState) -> None:
    ports = [{"bootstrap_servers": stack.address(use), **_NOBODY} for use in ("kafka", "kafka_controller")]
    own = mesh(stack).options()
    assert admitted([*ports, own]) == [own]


def test_a_guessed_password_gets_nothing(stack: StackState) -> None:
    guesses = [
        mesh(stack).options()
        | {"sasl_mechanism": mechanism, "sasl_plain_username": user, "sasl_plain_password": "tidemill"}
        for mechanism in ("SCRAM-SHA-512", "PLAIN")
        for user in (kafka_access.MESH, kafka_access.PRODUCER, "stranger")
    ]
    assert admitted(guesses) == []


def test_a_foreign_producer_writes_to_the_inbound_topic(stack: StackState) -> None:
    foreign = producer(stack, acks="all", enable_idempotence=True)
    foreign.send(INBOUND.name, b"an event").get(timeout=20)
    foreign.close()
    reader = KafkaConsumer(
        INBOUND.name, **mesh(stack).options(), auto_offset_reset="earliest", consumer_timeout_ms=20_000
    )
    assert next(reader).value == b"an event"
    reader.close()


@pytest.mark.parametrize("topic", [RECORDS_RAW.name, DEAD_LETTERS.name])
def test_a_foreign_producer_writes_nowhere_else(stack: StackState, topic: str) -> None:
    foreign = producer(stack)
    with pytest.raises(KafkaError):
        foreign.send(topic, b"forged").get(timeout=20)
    foreign.close()


def test_a_foreign_producer_reads_and_changes_nothing(stack: StackState) -> None:
    admin = KafkaAdminClient(**producer_options(stack), **_QUICK)
    assert set(admin.list_topics()) <= {INBOUND.name, FEEDBACK_INBOUND.name}
    with pytest.raises(KafkaError):
        admin.create_topics([NewTopic("stolen", 1, 1)])
    admin.close()
    reader = KafkaConsumer(INBOUND.name, **producer_options(stack), group_id="thief", consumer_timeout_ms=10_000)
    with pytest.raises(KafkaError):
        next(reader)
    reader.close()


def test_passwords_are_in_files_that_no_one_else_reads_and_in_no_command_line(stack: StackState) -> None:
    folder = stack.layout.state.kafka
    files = [*folder.glob("*.password"), folder / "server.properties", folder / "kafka-client.properties"]
    assert len(files) == 5
    assert read_by_others(files) == []
    passwords = [path.read_text().strip() for path in folder.glob("*.password")]
    lines = " ".join(path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert not any(password in lines for password in passwords)
    logs = (stack.layout.state.logs / "kafka.log").read_text()
    assert not any(password in logs for password in passwords)


def test_the_file_for_java_clients_names_the_producer(stack: StackState) -> None:
    lines = (stack.layout.state.kafka / "kafka-client.properties").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert values["bootstrap.servers"] == stack.kafka_bootstrap
    assert values["sasl.mechanism"] == "SCRAM-SHA-512"
    assert 'username="producer"' in values["sasl.jaas.config"]


@pytest.mark.slow
def test_a_storage_without_users_gets_them() -> None:
    """A storage of an earlier release keeps its records, and its broker now asks for a password."""
    with open_folder() as folder:
        with running_parts({"kafka"}, folder / "state", own=True) as first:
            ensure_topics(mesh(first))
            publisher = KafkaProducer(**mesh(first).options())
            publisher.send(INBOUND.name, b"kept").get(timeout=20)
            admin = KafkaAdminClient(**mesh(first).options())
            forget(admin)
            admin.close()
            publisher.close()
            (first.layout.state.kafka / "users-known").unlink()
        again = client.up(folder / "state", first.home, {"kafka"})
        try:
            foreign = producer(again)
            foreign.send(INBOUND.name, b"new").get(timeout=20)
            foreign.close()
            reader = KafkaConsumer(
                INBOUND.name, **mesh(again).options(), auto_offset_reset="earliest", consumer_timeout_ms=10_000
            )
            assert {message.value for message in reader} == {b"kept", b"new"}
            reader.close()
        finally:
            client.down(folder / "state", first.home)


def forget(admin: KafkaAdminClient) -> None:
    from kafka.admin import UserScramCredentialDeletion

    users = (kafka_access.PRODUCER, kafka_access.MESH)
    admin.alter_user_scram_credentials([UserScramCredentialDeletion(user, "SCRAM-SHA-512") for user in users])
