"""`tidemill review` against the running service: taken, decided, exported, imported, and learnt from."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from typer.testing import CliRunner

from gateway.cli.main import create_cli
from services.kit.ids import new_id
from tests.integration.pipeline.conftest import Peers, PipelineProcess
from tests.integration.pipeline.test_corrections import serve
from tests.integration.pipeline.test_service import spec, until
from tests.waiting import wait_until

pytestmark = pytest.mark.real


def test_answers_are_reviewed_on_the_command_line_and_in_label_studio(
    pipeline: PipelineProcess, stub: PipelineServiceStub, peers: Peers, kafka: str, tmp_path: Path
) -> None:
    peers.trained.set()
    wanted = spec(f"loop-{uuid.uuid4().hex[:8]}")
    wanted.rollout.model = model = f"models/{wanted.name}"
    wanted.capture.review.random_share = wanted.capture.review.double_share = 1.0
    wanted.feedback.corrections.weight = 1
    first = stub.CreateCycle(pb.CreateCycleRequest(spec=wanted), timeout=30).cycle
    until(stub, first.name, lambda cycle: cycle.state != Cycle.STATE_RUNNING)
    serve(kafka, model, [f"answers/{new_id()}" for _ in range(3)])

    def review(*arguments: str) -> Any:
        address = ["--address", f"127.0.0.1:{pipeline.port}"]
        result = CliRunner().invoke(create_cli(), ["review", *arguments, *address], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    def queued() -> list[Any] | None:
        found: list[Any] = review("list", "--model", wanted.name, "--json")
        return found if len(found) == 3 else None

    newest = wait_until(queued, "three answers in the queue")[0]["answer"]
    taken = review("next", "--reviewer", "anna", "--json")
    assert (taken["answer"], taken["given"], taken["state"]) == (newest, "given", "STATE_TAKEN")
    review("submit", newest, "edit", "better", "--reviewer", "anna")
    # The rest is decided in Label Studio, by two people.
    file = tmp_path / "tasks.json"
    assert "3 answers written" in review("export", str(file), "--state", "all")
    tasks = json.loads(file.read_text())
    assert [len(task["annotations"]) for task in tasks] == [1, 0, 0]
    for task in tasks:
        result = {"from_name": "correction", "to_name": "prompt", "type": "textarea", "value": {"text": ["best"]}}
        task["annotations"] += [{"completed_by": {"email": "ben"}, "result": [result]}]
    file.write_text(json.dumps(tasks))
    assert "3 decisions recorded, 1 were there already, 0 refused" in review("import", str(file))
    assert "0 decisions recorded, 4 were there already, 0 refused" in review("import", str(file))
    found = review("agreement", "--json")
    assert (found["pending"], found["done"], found["count"]) == ("2", "1", "1")
    second = stub.CreateCycle(pb.CreateCycleRequest(spec=wanted), timeout=30).cycle
    ended = until(stub, second.name, lambda cycle: cycle.state != Cycle.STATE_RUNNING)
    assert "3 corrections" in ended.stages[0].summary
