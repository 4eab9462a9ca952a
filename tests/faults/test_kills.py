"""Real parts are frozen or run out of disk while records arrive: what was acknowledged is there, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.record_pb2 import Record

from infra.stack.state import ChildPhase, StackState, read_state
from infra.stack.testing import running_parts
from tests.faults.disk import SmallDisk
from tests.faults.reconciler import Ledger, compare, raw_records
from tests.waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

_RESTART_S = 300.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since sockets are created below it."""
    with tempfile.TemporaryDirectory(prefix="tidemill-") as short:
        yield Path(short)


def now(stack: StackState) -> StackState:
    return read_state(stack.layout)


def all_ready(stack: StackState) -> bool:
    return all(child.phase is ChildPhase.READY for child in now(stack).children.values())


class Producer:
    """Pushes records one after the other and retries each until it is acknowledged, as a careful backend does."""

    def __init__(self, stack: StackState, name: str, ledger: Ledger) -> None:
        self._address = stack.address("ingest")
        self._name = name
        self._ledger = ledger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0
        self.defects: list[grpc.RpcError] = []
        """Answers that no fault of a part excuses."""

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
        assert self.defects == []

    def _run(self) -> None:
        with grpc.insecure_channel(self._address, [("grpc.max_reconnect_backoff_ms", 500)]) as channel:
            stub = stubs.IngestServiceStub(channel)
            while not self._stop.is_set():
                self._push(stub, f"{self._name}-{self.count}")
                self.count += 1

    def _push(self, stub: stubs.IngestServiceStub, record: str) -> None:
        text = f"the text of {record} " + "x" * 2000
        request = pb.IngestRecordsRequest(
            records=[Record(source="faults", record_id=record, text=text)], request_id=record
        )
        self._ledger.sent(record, text)
        while not self._stop.is_set():
            try:
                stub.IngestRecords(request, timeout=10)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                    self.defects.append(error)
                self._stop.wait(0.1)
            else:
                self._ledger.accepted(record, text)
                return


def reconcile(stack: StackState, ledger: Ledger) -> None:
    wait_until(lambda: all_ready(stack), "all parts", _RESTART_S)
    found = raw_records(stack.kafka_bootstrap, "faults")
    finding = compare("tidemill.records.raw", ledger.acknowledged, found, ledger.uncertain)
    assert ledger.acknowledged
    assert finding.sound, finding


@pytest.mark.parametrize("part", ["kafka", "triton", "elasticsearch"])
def test_a_frozen_part_is_killed_and_started_again(part: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_LIVENESS_PARTS_S", "5")
    with running_parts({part}, folder / "s") as stack:
        pid = stack.children[part].pid
        assert pid is not None
        os.killpg(pid, signal.SIGSTOP)  # Elasticsearch's first process only starts the one that answers
        wait_until(lambda: now(stack).children[part].restarts == 1, "the restart", _RESTART_S)
        wait_until(lambda: all_ready(stack), "all parts", _RESTART_S)
        after = now(stack).children[part]
        assert after.pid != pid
        assert after.last_error.startswith("did not answer for ")
        assert f"{part} did not answer for " in (stack.layout.state.logs / "supervisor.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk; test_supervision fills one for every user")
def test_a_full_disk_that_is_freed_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a reserve, so that it really gets full.
    monkeypatch.setenv("TIDEMILL_DISK_RESERVE_BYTES", "0")
    small = folder / "d"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=0755", "tidemill-test", str(small)], check=True)
    try:
        with running_parts({"kafka", "ingest"}, small / "s") as stack:
            ledger = Ledger(folder / "ledger")
            disk = SmallDisk(small)
            with Producer(stack, "a", ledger).running(), Producer(stack, "b", ledger).running():
                wait_until(lambda: len(ledger.acknowledged) > 5, "records", _RESTART_S)
                disk.fill()
                # Its log file still has some room at first; a broker that cannot write exits.
                kafka = stack.children["kafka"].pid
                wait_until(lambda: not Path(f"/proc/{kafka}").exists(), "the end of Kafka", _RESTART_S)
                disk.free()
                wait_until(lambda: all_ready(stack), "all parts", _RESTART_S)
                before = len(ledger.acknowledged)
                wait_until(lambda: len(ledger.acknowledged) > before + 5, "records again", _RESTART_S)
            assert now(stack).children["kafka"].restarts > 0
            reconcile(stack, ledger)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
