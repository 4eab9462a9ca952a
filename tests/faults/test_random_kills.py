"""Processes of the mesh are killed or frozen at random while callers use every door: afterwards nothing is missing.

`make faults SEEDS=1-20 MINUTES=10` chooses the seeds and how long each lasts; a failure names its seed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import grpc
import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion

from infra.stack.process import is_alive, start_ticks
from infra.stack.state import ChildPhase, StackState, read_state
from infra.stack.testing import running_parts
from infra.stack.topology import NAMES
from services.kit.ids import new_id
from tests.faults.reconciler import compare, raw_records, recorded_feedback, served_answers, snapshot_rows, verdicts
from tests.load.caller import DATASET, SOURCE, Ledgers
from tests.load.callers import AWAY, Load
from tests.load.session import prepare_mesh
from tests.waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

MINUTES = float(os.environ.get("TIDEMILL_FAULT_MINUTES", "1"))
_PATIENCE_S = 600.0
_FROZEN = 0.25  # share of the faults

logger = logging.getLogger(__name__)


def seeds() -> list[int]:
    """TIDEMILL_FAULT_SEEDS: numbers and ranges, such as `1,5-8`."""
    found: list[int] = []
    for piece in os.environ.get("TIDEMILL_FAULT_SEEDS", "1-2").split(","):
        first, _, last = piece.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "small"


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[StackState]:
    """A whole mesh below a short path, which kills frozen processes soon."""
    monkeypatch.setenv("TIDEMILL_LIVENESS_PARTS_S", "10")
    monkeypatch.setenv("TIDEMILL_LIVENESS_SERVICES_S", "10")
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-") as short,
        running_parts(NAMES, Path(short) / "s", own=True) as stack,
    ):
        yield stack


def strike(stack: StackState, chance: random.Random) -> str | None:
    """Kills or freezes one ready process and waits until it has ended; returns a description."""
    name = chance.choice(sorted(NAMES))
    frozen = chance.random() < _FROZEN
    victim = read_state(stack.layout).children[name]
    if victim.pid is None or victim.phase is not ChildPhase.READY:
        return None
    pid, ticks = victim.pid, start_ticks(victim.pid)
    if frozen:  # with its children: Elasticsearch's first process only starts the one that answers
        os.killpg(pid, signal.SIGSTOP)
    else:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid, ticks), f"the end of {name}", _PATIENCE_S)
    return f"{'SIGSTOP' if frozen else 'SIGKILL'} {name}"


def all_ready(stack: StackState) -> bool:
    children = read_state(stack.layout).children
    return len(children) >= len(NAMES) and all(child.phase is ChildPhase.READY for child in children.values())


# kafka-python's producer flushes once more when it is collected, which a broker that was killed does not answer.
@pytest.mark.filterwarnings("ignore:.*KafkaProducer.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(MINUTES * 60 + 2400)
@pytest.mark.parametrize("seed", seeds())
def test_whatever_is_killed_the_sums_add_up(seed: int, mesh: StackState, models: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    key = (mesh.state / "api-key").read_text().strip()
    prepare_mesh(mesh, key, models)
    # One caller at each of thirty doors is as much as parts stand that must answer within 10 s while others start.
    load = Load(mesh, key, tmp_path / "ledgers", AWAY, callers=1, pause_s=0.1)
    struck: Counter[str] = Counter()
    with load.running():
        wait_until(lambda: all(load.answered().values()), "an answer at every door", _PATIENCE_S)
        end = time.monotonic() + MINUTES * 60
        while time.monotonic() < end:
            if done := strike(mesh, chance):
                struck[done] += 1
            threading.Event().wait(chance.uniform(0.5, 6.0))
        wait_until(lambda: all_ready(mesh), "all parts", _PATIENCE_S)
        before = load.answered()
        wait_until(
            lambda: {door for door, count in load.answered().items() if count <= before[door] + 1} == set(),
            "answers at every door after the last fault",
            _PATIENCE_S,
        )
    logger.info("seed %d: %s; answered %s", seed, dict(struck), load.answered())
    assert struck
    assert load.defects == {}
    reconcile(mesh, key, load.ledgers)


def reconcile(mesh: StackState, key: str, ledgers: Ledgers) -> None:
    """Checks for every path that what was acknowledged is stored once and unchanged, and nothing else is."""
    kafka = mesh.kafka_bootstrap
    accepted = {**ledgers.records.acknowledged, **ledgers.inbound.acknowledged}
    uncertain = {**ledgers.records.uncertain, **ledgers.inbound.uncertain}
    assert all((ledgers.records.acknowledged, ledgers.inbound.acknowledged, ledgers.answers.acknowledged))
    wait_until(
        lambda: accepted.keys() <= {record for record, _ in raw_records(kafka, SOURCE)}, "all records", _PATIENCE_S
    )
    raw = raw_records(kafka, SOURCE)
    findings = [compare("tidemill.records.raw", accepted, raw, uncertain)]

    wait_until(
        lambda: ledgers.feedback.acknowledged.keys() <= {mark for mark, _ in recorded_feedback(kafka)}, "all feedback"
    )
    findings.append(
        compare(
            "tidemill.feedback", ledgers.feedback.acknowledged, recorded_feedback(kafka), ledgers.feedback.uncertain
        )
    )

    # The names of answers whose callers were cut off are unknown.
    answers = ledgers.answers.acknowledged
    published = [answer for answer in served_answers(kafka) if answer[0] in answers]
    findings.append(compare("tidemill.predictions", answers, published))
    assert [str(finding) for finding in findings if not finding.sound] == []

    version = _built(mesh, key, len(raw))
    folder = Path(urlparse(version.uri).path)
    rows = snapshot_rows(folder)
    counts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["counts"]
    ids = {record for record, _ in raw}
    assert sorted(record for names in rows.values() for record in names) == sorted(ids)
    assert {name: counts[name] for name in rows} == {name: len(names) for name, names in rows.items()}
    assert counts["records_in"] == counts["kept"] + counts["rejected"] == len(ids)
    cleaned, rejected = verdicts(kafka, DATASET)
    assert cleaned == {*rows["train"], *rows["holdout"]}
    assert rejected == set(rows["rejected"])


def _built(mesh: StackState, key: str, records: int) -> DatasetVersion:
    """The data-set version with all records, once cleaning has processed them."""
    metadata = (("authorization", f"Bearer {key}"),)
    with grpc.insecure_channel(mesh.address("gateway")) as channel:
        stub = CleaningServiceStub(channel)

        def build() -> DatasetVersion | None:
            ordered = stub.BuildDatasetVersion(
                pb.BuildDatasetVersionRequest(request_id=new_id(), dataset=DATASET), metadata=metadata, timeout=60
            ).dataset_version
            watched = stub.WatchDatasetVersion(
                pb.WatchDatasetVersionRequest(name=ordered.name), metadata=metadata, timeout=300
            )
            last = [item.dataset_version for item in watched][-1]
            assert last.state == DatasetVersion.STATE_READY, last
            assert last.records_in == records, f"{last.records_in} of {records} records"
            return last

        return wait_until(build, "a version with every record", _PATIENCE_S)
