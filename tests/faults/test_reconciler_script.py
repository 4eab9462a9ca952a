"""The reconciler as an outside script: what it says of a real broker, and with which exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.record_pb2 import Record

from infra.stack.layout import python_path
from infra.stack.testing import running_parts
from services.kit.bus.brokers import Brokers
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import RECORDS_RAW
from tests.conftest import ROOT
from tests.faults.reconciler import Ledger


@pytest.mark.real
def test_the_script_reconciles_a_real_broker_from_outside(tmp_path: Path) -> None:
    """As an operator runs it: nothing but the broker's address and the password's file."""
    ledger = Ledger(tmp_path / "ledger")
    with running_parts({"kafka"}, tmp_path / "stack") as stack:
        ensure_topics(stack.kafka_bootstrap)
        user, password = os.environ["TIDEMILL_KAFKA_USER"], os.environ["TIDEMILL_KAFKA_PASSWORD_FILE"]
        bus = KafkaEventPublisher(Brokers(stack.kafka_bootstrap, user, Path(password)), "test")
        for record, text in (("a", "one"), ("b", "two")):
            ledger.accepted(record, text)
            message = RecordIngested(record=Record(record_id=record, source="reconciled", text=text))
            bus.publish(RECORDS_RAW, [OutgoingEvent(record, message)])
        bus.close()

        def reconcile() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.faults.reconciler",
                    tmp_path / "ledger",
                    stack.kafka_bootstrap,
                    "reconciled",
                ],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": python_path(),
                    "TIDEMILL_KAFKA_USER": user,
                    "TIDEMILL_KAFKA_PASSWORD_FILE": password,
                },
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )

        sound = reconcile()
        assert (sound.returncode, sound.stdout) == (
            0,
            "tidemill.records.raw: 2 acknowledged, all there once\n",
        ), sound.stderr
        ledger.accepted("c", "three")
        lost = reconcile()
        assert (lost.returncode, lost.stdout) == (
            1,
            "tidemill.records.raw: 3 acknowledged, 1 lost (c…)\n",
        ), lost.stderr
