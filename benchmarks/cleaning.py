"""One and two processes of cleaning, members of one consumer group: `make bench-cleaning`, into docs/benchmarks.md.

Records wait on a real Kafka before the clock starts; it stops when the verdict of each is stored and published. One
process and two in turn, with a database in a file and with PostgreSQL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from google.protobuf.json_format import ParseDict
from kafka import KafkaAdminClient
from sqlalchemy import create_engine, text
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.cleaning.v1.dataset_pb2 import DatasetSpec, OperatorSpec

from benchmarks.machine import described
from benchmarks.report import table, write_section
from infra.stack.testing import brokers, running_parts
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.topics import RECORDS_RAW
from services.kit.config import home_dir
from tests.integration.cleaning.bus import raw_event
from tests.postgresql import running_postgresql
from tests.service_process import ServiceProcess
from tests.waiting import wait_for

_ROOT = Path(__file__).parents[1]
_GROUP = "tidemill-cleaning"
_BATCH = 1000


def _operators() -> list[OperatorSpec]:
    """The recipe of the reviews, and masking."""
    recipe = yaml.safe_load((_ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8"))["dataset"]["operators"]
    named = [(each, {}) if isinstance(each, str) else next(iter(each.items())) for each in ("mask_pii", *recipe)]
    return [ParseDict({"name": name, "params": params}, OperatorSpec()) for name, params in named]


@dataclass
class Mesh:
    """Two processes of cleaning on a database of their own; the second one runs where it is wanted."""

    bootstrap: str
    database: str
    folder: Path
    texts: Sequence[str]
    processes: list[ServiceProcess] = field(default_factory=list)
    rounds: int = 0

    def start(self) -> None:
        """Starts the first process."""
        for number in (1, 2):
            settings = {
                "TIDEMILL_KAFKA_BOOTSTRAP": self.bootstrap,
                "TIDEMILL_DATABASE_URL": self.database,
                "TIDEMILL_ARTIFACTS_URL": f"file://{self.folder}/artifacts",
                "TIDEMILL_CLEANING_PROCESS": str(number),
                "TIDEMILL_CLEANING_PROCESSES": "2",
                "TIDEMILL_CLEANING_SOCKETS": str(self.folder),
            }
            self.processes.append(ServiceProcess("cleaning", self.folder, settings))

    def measure(self, processes: int) -> tuple[float, float]:
        """Records a second, and processor microseconds for each."""
        self.rounds += 1
        source = f"bench-{self.rounds}"
        used = self.processes[:processes]
        first = used[0]
        first.start()
        request = pb.PutDatasetRequest(
            name=f"datasets/{source}", spec=DatasetSpec(sources=[source], operators=_operators())
        )
        CleaningServiceStub(first.channel()).PutDataset(request, timeout=60)
        # Without records a process compiles no recipe: the first one would be measured with that.
        for process in used[1:]:
            process.start()
        wait_for(lambda: _members(self.bootstrap), lambda count: count == processes)
        self._publish(source, self.texts[:_BATCH], "warm")
        self._await(f"imports/{source}-warm", _BATCH)
        before = sum(map(_processor_s, used))
        began = time.perf_counter()
        self._publish(source, self.texts, "all")
        self._await(f"imports/{source}-all", len(self.texts))
        took, cpu = time.perf_counter() - began, sum(map(_processor_s, used)) - before
        for process in reversed(used):
            process.stop()
        return len(self.texts) / took, 1e6 * cpu / len(self.texts)

    def _publish(self, source: str, texts: Sequence[str], name: str) -> None:
        publisher = KafkaEventPublisher(brokers(self.bootstrap), "ingest")
        numbered = enumerate(texts)
        while batch := list(itertools.islice(numbered, _BATCH)):
            publisher.publish(
                RECORDS_RAW,
                [raw_event(f"{name}-{n}", source, each, f"imports/{source}-{name}", label="0") for n, each in batch],
            )
        publisher.close()

    def _await(self, name: str, count: int) -> None:
        engine = create_engine(self.database.replace("postgresql://", "postgresql+psycopg://"))
        schema = "cleaning." if "postgresql" in self.database else ""
        query = text(f"SELECT count(*) FROM {schema}import_records WHERE import_name = :name")
        while True:
            with engine.connect() as connection:
                if connection.execute(query, {"name": name}).scalar_one() >= count:
                    break
            time.sleep(0.05)
        engine.dispose()


def _processor_s(process: ServiceProcess) -> float:
    assert process.process is not None
    times = psutil.Process(process.process.pid).cpu_times()
    return float(times.user + times.system)


def _members(bootstrap: str) -> int:
    """Members of the group that have partitions."""
    admin = KafkaAdminClient(**brokers(bootstrap).options())
    try:
        found = admin.describe_groups([_GROUP])[_GROUP]["members"]
        return sum(bool(each["member_assignment"]) for each in found)
    finally:
        admin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--records", type=int, default=15_000)
    arguments = parser.parse_args()
    head = described(("kafka-python", "confluent-kafka", "sqlalchemy", "psycopg"))
    reviews = (home_dir() / "data" / "reviews" / "reviews.jsonl").open(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in itertools.islice(reviews, arguments.records)]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder, ExitStack() as open_:
        stack = open_.enter_context(running_parts({"kafka"}, Path(folder) / "stack"))
        ensure_topics(stack.kafka_bootstrap)
        server = open_.enter_context(running_postgresql())
        meshes: dict[str, Mesh] = {}
        for name in ("SQLite", "PostgreSQL"):
            place = Path(folder) / name.lower()
            place.mkdir()
            database = f"sqlite:///{place}/cleaning.sqlite" if name == "SQLite" else server.create("bench")
            meshes[name] = Mesh(stack.kafka_bootstrap, database, place, texts)
            meshes[name].start()
        for _ in range(arguments.repeats):
            for name, mesh in meshes.items():
                for processes in (1, 2):
                    found.setdefault((name, processes), []).append(mesh.measure(processes))
                    print(name, processes, *(f"{each:,.0f}" for each in found[name, processes][-1]), flush=True)
    write_section(_ROOT / "docs" / "benchmarks.md", "cleaning", [*head, *_report(found, arguments)])


def _report(found: dict[tuple[str, int], list[tuple[float, float]]], arguments: argparse.Namespace) -> list[str]:
    rows = []
    for (name, processes), measures in found.items():
        rate, cpu = (statistics.median(measure[at] for measure in measures) for at in (0, 1))
        pairs = zip(measures, found[name, 1], strict=True)
        ratio = statistics.median(mine[0] / one[0] for mine, one in pairs)
        rows.append([f"{name}, {processes}", f"{rate:,.0f}", f"{cpu:,.0f} µs", f"{ratio:.2f}"])
    return [
        f"- {arguments.repeats} repeats of {arguments.records:,} reviews with the recipe of pipelines/reviews.yaml and"
        " `mask_pii`; everything in turn, medians. Kafka, the database and what publishes the records share the"
        " processors",
        "",
        *table(("database, processes", "records a second", "processor time a record", "beside one process"), rows),
    ]


if __name__ == "__main__":
    main()
