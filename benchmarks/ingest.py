"""Durable ingest beside the Kafka client under it: `make bench-ingest`, into docs/benchmarks.md.

Callers send batches and wait until all in-sync replicas have them: to the Kafka client itself, with messages that are
made already, and to `IngestRecords` of an ingest service, which checks the records, gives them identities and makes
the messages. Everything in turn, for each of the two clients.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from tidemill.ingest.v1.ingest_service_pb2 import IngestRecordsRequest
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.record_pb2 import Record

from benchmarks.machine import described
from benchmarks.report import table, write_section
from infra.stack.testing import brokers, running_parts
from services.kit.bus.brokers import ProducerClient
from services.kit.bus.cloudevents import EncodedEvent
from services.kit.bus.kafka import ensure_topics
from services.kit.bus.kafka_python import KafkaPythonSender
from services.kit.bus.librdkafka import LibrdkafkaSender
from services.kit.bus.senders import Sender
from services.kit.bus.topics import RECORDS_RAW
from services.kit.ids import new_id
from tests.service_process import ServiceProcess

_DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_CALLERS, _BATCH, _BYTES = 4, 500, 500


@dataclass(frozen=True)
class Side:
    """What is measured."""

    send: Callable[[Sequence[str]], None]
    """Returns when the texts are durable."""
    cpu_s: Callable[[], float]
    """Processor seconds of the process that holds the client, so far."""


def _client(sender: Sender) -> Side:
    def send(texts: Sequence[str]) -> None:
        sender.send(RECORDS_RAW, [EncodedEvent(new_id().encode(), text.encode(), []) for text in texts])

    return Side(send, time.process_time)


def _service(process: ServiceProcess) -> Side:
    stub = IngestServiceStub(process.channel())
    assert process.process is not None
    watched = psutil.Process(process.process.pid)

    def send(texts: Sequence[str]) -> None:
        records = [Record(source="bench", text=text) for text in texts]
        stub.IngestRecords(IngestRecordsRequest(records=records), timeout=120)

    def cpu_s() -> float:
        times = watched.cpu_times()
        return float(times.user + times.system)

    return Side(send, cpu_s)


def _measure(side: Side, batches: int, draw: random.Random) -> tuple[float, float]:
    """Records a second, and processor microseconds for each."""
    # No record is like another: ingest would send it once.
    work = [[f"{draw.getrandbits(64):x} ".ljust(_BYTES, "a") for _ in range(_BATCH)] for _ in range(batches)]
    cpu, began = side.cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(_CALLERS) as pool:
        list(pool.map(side.send, work))
    count = batches * _BATCH
    return count / (time.perf_counter() - began), 1e6 * (side.cpu_s() - cpu) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40)
    arguments = parser.parse_args()
    head = described(("confluent-kafka", "kafka-python", "grpcio", "protobuf"))
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder, ExitStack() as open_:
        stack = open_.enter_context(running_parts({"kafka"}, Path(folder)))
        ensure_topics(stack.kafka_bootstrap)
        sides: dict[str, Side] = {}
        for client, kind in (
            (ProducerClient.KAFKA_PYTHON, KafkaPythonSender),
            (ProducerClient.LIBRDKAFKA, LibrdkafkaSender),
        ):
            sender: Sender = kind(brokers(stack.kafka_bootstrap), "bench", 120.0, True)
            open_.callback(sender.close)
            sides[f"{client} alone"] = _client(sender)
            state = Path(folder) / client.value
            state.mkdir()
            settings = {
                "TIDEMILL_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
                "TIDEMILL_KAFKA_PRODUCER": client.value,
                "TIDEMILL_DATABASE_URL": f"sqlite:///{state}/ingest.sqlite",
            }
            process = ServiceProcess("ingest", state, settings)
            process.start()
            open_.callback(process.kill)
            sides[f"ingest by {client}"] = _service(process)
        draw = random.Random(0)
        for side in sides.values():
            _measure(side, _CALLERS, draw)
        for _ in range(arguments.repeats):
            for name, side in sides.items():
                found.setdefault(name, []).append(_measure(side, arguments.batches, draw))
    print(json.dumps(found))
    write_section(_DOCUMENT, "ingest", [*head, *_report(found, arguments)])


def _report(found: dict[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> list[str]:
    rows = []
    for name, measures in found.items():
        client = name.removeprefix("ingest by ").removesuffix(" alone")
        ratio = statistics.median(
            mine[0] / alone[0] for mine, alone in zip(measures, found[f"{client} alone"], strict=True)
        )
        rate, cpu = (statistics.median(measure[at] for measure in measures) for at in (0, 1))
        rows.append([name, f"{rate:,.0f}", f"{cpu:,.0f} µs", f"{ratio:.2f}"])
    columns = ("", "records a second", "processor time a record", "beside its client alone")
    return [
        f"- {arguments.repeats} repeats of {arguments.batches} batches of {_BATCH} records of {_BYTES} bytes,"
        f" {_CALLERS} callers, acks=all, lz4; everything in turn, medians",
        "",
        *table(columns, rows),
    ]


if __name__ == "__main__":
    main()
