"""Advice by the service, and the machine measured for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.training.v1 import training_service_pb2 as pb

from services.training.adapters.calibration import MeasuredMachine
from services.training.domain.advice import Wishes
from services.training.domain.tasks import TASKS
from services.training.engine.advising import predict
from services.training.engine.model_shape import Shape
from services.training.worker.calibration import config_of
from tests.integration.training.conftest import RunInputs, TrainingProcess

_SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def test_advice_needs_the_configuration_of_a_model_only(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((inputs.encoder / "config.json").read_bytes())
    request = pb.AdviseTrainingRequest(
        task="text_classification", device="edge", base_models=[str(tmp_path)], max_size_bytes=50 * 10**6
    )
    found = training.stub.AdviseTraining(request, timeout=60)
    assert (found.fits, found.goal, found.device_measured) == (True, "small", False)
    assert found.candidates[0].build == "int8"
    assert found.spec.base_model == str(tmp_path)
    assert found.spec.text_classification.max_input_tokens == 128
    request.max_size_bytes = 1000
    refused = training.stub.AdviseTraining(request, timeout=60)
    assert not refused.fits
    assert [each.limit for each in refused.candidates[0].exceeded] == ["max_size_bytes"]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"device": "toaster"}, "device"),
        ({"goal": "best"}, "goal"),
        ({"task": "translation"}, "task"),
        ({"base_models": ["unknown-model"]}, "base_models[0]"),
        ({"max_latency_ms": -1.0}, "max_latency_ms"),
        ({"max_size_bytes": -1}, "max_size_bytes"),
        ({"max_quality_loss": 2.0}, "max_quality_loss"),
        ({"callers": -1}, "callers"),
    ],
)
def test_wrong_wishes_are_refused_by_field(training: TrainingProcess, wanted: dict[str, object], field: str) -> None:
    request = pb.AdviseTrainingRequest(**{"task": "generation", "device": "edge", **wanted})  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as refused:
        training.stub.AdviseTraining(request, timeout=60)
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
    assert status is not None
    fields = []
    for detail in status.details:
        found = error_details_pb2.BadRequest()
        if detail.Unpack(found):
            fields += [violation.field for violation in found.field_violations]
    assert fields == [field]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_classification", "generation"])
def test_the_machine_is_measured_with_real_builds(tmp_path: Path, task: str) -> None:
    architecture = TASKS[task].ARCHITECTURE
    here = MeasuredMachine(tmp_path).device(architecture)
    assert here.tail >= 1
    assert set(here.speeds[architecture]) == set(TASKS[task].VARIANTS)
    config = config_of(architecture, _SIZES)
    for build in TASKS[task].VARIANTS:
        short, long = (
            predict(Wishes(task, max_input_tokens=tokens), here, Shape.of_config(config), build) for tokens in (16, 512)
        )
        assert 0 < short.latency_ms < long.latency_ms


def test_the_measurement_says_what_it_can_measure() -> None:
    command = [sys.executable, "-m", "services.training.worker.calibration", "vision"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "encoder" in done.stderr
