"""kill -9 of each service in the middle of its own stage: no accepted record is lost, one model is published."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tidemill.inference.v1 import inference_service_pb2 as inference_pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle, Stage
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.training.v1 import training_service_pb2 as training_pb
from tidemill.training.v1.training_service_pb2_grpc import TrainingServiceStub

from services.kit.config import home_dir
from tests.e2e.conftest import Mesh
from tests.waiting import wait_until

# A new name for each run of the tests, so that on a reused mesh nothing of an earlier run is reused or counted.
NAME = f"reviews-{uuid.uuid4().hex[:8]}"


def _cycle(stub: PipelineServiceStub, mesh: Mesh, name: str) -> Cycle | None:
    """The cycle now; None while the pipeline service is unavailable."""
    try:
        return stub.GetCycle(pb.GetCycleRequest(name=name), metadata=mesh.metadata, timeout=5).cycle
    except grpc.RpcError:
        return None


def _when(stub: PipelineServiceStub, mesh: Mesh, name: str, reached: Callable[[Cycle], bool]) -> Cycle:
    def look() -> Cycle | None:
        cycle = _cycle(stub, mesh, name)
        assert cycle is None or reached(cycle) or cycle.state != Cycle.STATE_RUNNING, cycle
        return cycle

    cycle = wait_until(look, "the cycle", 1200)
    assert reached(cycle), cycle
    return cycle


def _running(stage: str) -> Callable[[Cycle], bool]:
    def reached(cycle: Cycle) -> bool:
        found = next(item for item in cycle.stages if item.name == stage)
        return found.state == Stage.STATE_RUNNING and (stage == "publish" or bool(found.resources))

    return reached


def _trains(cycle: Cycle) -> bool:
    train = next(item for item in cycle.stages if item.name == "train")
    return _running("train")(cycle) and train.progress.phase == "train" and train.progress.done > 0


@pytest.mark.slow
def test_every_service_is_killed_in_its_stage(mesh: Mesh) -> None:
    # Rows that no other test uses, so that no other test's work is reused.
    source = mesh.scratch / "reviews.jsonl"
    with (home_dir() / "data" / "reviews" / "reviews.jsonl").open(encoding="utf-8") as lines:
        # The file is sorted by label.
        rows = [json.loads(line) for line in itertools.islice(lines, 0, None, 6)]
    for row in rows:
        row["text"] += "。"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def change(value: dict[str, Any]) -> None:
        value["name"] = NAME
        value["sources"][0]["source"] = NAME
        value["sources"][0]["json_lines"]["uri"] = str(source)
        value["dataset"]["name"] = f"datasets/{NAME}"
        value["training"]["model_name"] = NAME
        value["training"]["optimization"] |= {"max_steps": 12, "batch_size": 8, "checkpoint_every": 4}
        value["training"]["optimization"].pop("epochs", None)
        value["training"]["evaluation"] = {"max_examples": 200}
        value["gate"] = {"max_quality_loss": 1.0}
        value["rollout"]["model"] = f"models/{NAME}"

    path = mesh.pipeline("reviews.yaml", change)
    with mesh.channel() as channel:
        stub = PipelineServiceStub(channel)
        name = mesh.tidemill("run", str(path), "--detach").stdout.split()[-1]
        for service, reached in (
            ("ingest", _running("collect")),
            ("cleaning", _running("clean")),
            ("training", _trains),
            ("pipeline", _running("train")),
            ("pipeline", _running("publish")),
        ):
            _when(stub, mesh, name, reached)
            mesh.kill(service)
        ended = _when(stub, mesh, name, lambda cycle: cycle.state != Cycle.STATE_RUNNING)
        versions = InferenceServiceStub(channel).ListModelVersions(
            inference_pb.ListModelVersionsRequest(model=f"models/{NAME}"), metadata=mesh.metadata, timeout=10
        )
        runs = TrainingServiceStub(channel).ListRuns(
            training_pb.ListRunsRequest(page_size=1000), metadata=mesh.metadata, timeout=10
        )
    assert ended.state == Cycle.STATE_SUCCEEDED
    assert [run.name for run in runs.runs if run.spec.model_name == NAME] == list(ended.stages[2].resources)
    assert len(ended.stages[2].resources) == 1
    assert ended.dataset_version.records_in == len({(row["text"], row["label"]) for row in rows})
    assert [version.name for version in versions.model_versions] == [f"models/{NAME}/versions/1"]
    restarts = {name: child.restarts for name, child in mesh.now().children.items()}
    assert restarts["ingest"] >= 1
    assert restarts["cleaning"] >= 1
    assert restarts["training"] >= 1
    assert restarts["pipeline"] >= 2
