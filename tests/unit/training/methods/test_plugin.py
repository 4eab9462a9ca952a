"""Methods of other packages: the example is installed and found by contract, storage and worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tidemill.training.v1 import run_pb2
from torch import nn

from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.methods import stored_method
from services.training.entrypoints.mapping import spec_from, spec_to
from tests.plugins import example_installed


def message(options: dict[str, Any], name: str = "bitfit") -> run_pb2.TrainingSpec:
    value = {
        "base_model": "base",
        "text_classification": {"label_field": "label", "max_input_tokens": 32},
        "optimization": {"max_steps": 2, "batch_size": 4, "learning_rate": 0.1},
        "compression": {"variants": ["fp32"]},
        "plugin": {"name": name, "options": options},
    }
    return ParseDict(value, run_pb2.TrainingSpec())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with example_installed(tmp_path, monkeypatch):
        yield


@pytest.mark.usefixtures("installed")
def test_a_method_of_an_installed_package_chooses_the_weights() -> None:
    spec = spec_from(message({"norms": True}))
    assert spec.method.kind == "bitfit"
    model = nn.Sequential()
    model.add_module("linear", nn.Linear(2, 2))
    model.add_module("norm", nn.LayerNorm(2))
    adapted = spec.method.adapt(model)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained == {"linear.bias", "norm.weight", "norm.bias"}
    assert spec.method.merge(adapted) is model
    assert spec_from(spec_to(spec)) == spec
    assert TrainingSpec.from_json(json.loads(json.dumps(spec.to_json())), stored_method) == spec
    assert spec.digest("base") != spec_from(message({})).digest("base")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("options", "name", "field"),
    [
        ({"norm": True}, "bitfit", "spec.plugin.options.norm"),
        ({"norms": "perhaps"}, "bitfit", "spec.plugin.options.norms"),
        ({}, "bitfitt", "spec.plugin.name"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(options: dict[str, Any], name: str, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec_from(message(options, name))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_run_whose_method_is_no_longer_installed_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, example_installed(tmp_path, patch):
        spec = spec_from(message({"norms": True}))
        stored, sent = spec.to_json(), spec_to(spec)
    read = TrainingSpec.from_json(stored, stored_method)
    assert (read.to_json(), spec_to(read)) == (stored, sent)
    with pytest.raises(FailedPreconditionError, match="bitfit"):
        read.method.adapt(nn.Linear(2, 2))
