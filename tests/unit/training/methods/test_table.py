"""The methods of the contract and those of the engine are the same, and an unknown one is refused."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from tidemill.training.v1 import run_pb2

from services.kit.errors import InvalidArgumentError
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.methods import make_method, method_type, names
from services.training.entrypoints.mapping import spec_from, spec_to

SPEC = run_pb2.TrainingSpec.DESCRIPTOR
MESSAGES = {
    field.name: field.message_type
    for field in SPEC.oneofs_by_name["method"].fields
    if field.message_type is not None and field.name != "plugin"
}


def test_every_method_of_the_contract_has_its_module_and_the_other_way_round() -> None:
    assert names() == sorted(MESSAGES)


@pytest.mark.parametrize("name", names())
def test_the_options_of_a_method_are_the_fields_of_its_message(name: str) -> None:
    method = method_type(name)()
    assert method.kind == name
    assert {field.name for field in fields(method)} - {"kind"} == {field.name for field in MESSAGES[name].fields}


@pytest.mark.parametrize("name", names())
def test_a_method_survives_contract_and_storage(name: str) -> None:
    spec = run_pb2.TrainingSpec(
        base_model="base",
        optimization=run_pb2.Optimization(max_steps=2, batch_size=4, learning_rate=0.1),
        compression=run_pb2.Compression(variants=["fp32"]),
    )
    if "text_classification" in getattr(method_type(name), "TASKS", ("text_classification",)):
        spec.text_classification.label_field, spec.text_classification.max_input_tokens = "label", 32
    else:
        spec.generation.prompt_template, spec.generation.target_field = "{text}", "answer"
    getattr(spec, name).SetInParent()
    for field in MESSAGES[name].fields:
        options = getattr(spec, name)
        if field.is_repeated:
            getattr(options, field.name).extend(["one", "two"])
        else:
            other = "other" if field.type == field.TYPE_STRING else field.default_value + 1
            setattr(options, field.name, other)
    read = spec_from(spec)
    assert read.method.kind == name
    assert getattr(spec_to(read), name) == getattr(spec, name)
    assert TrainingSpec.from_json(json.loads(json.dumps(read.to_json())), make_method) == read


def test_an_unknown_method_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec\.method: 'prefix' is not a training method; .* full, .*lora"):
        make_method("prefix", {})


def test_a_spec_without_a_method_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        spec_from(run_pb2.TrainingSpec(text_classification=run_pb2.TextClassificationTask(label_field="label")))
    assert [violation.field for violation in refused.value.violations] == ["spec.method"]


def test_a_spec_without_a_task_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec\.task"):
        spec_from(run_pb2.TrainingSpec(full=run_pb2.FullMethod()))


def test_a_spec_stored_by_an_earlier_version_is_read() -> None:
    stored = {
        "model_name": "m", "base_model": "b", "dataset_name": "d", "dataset_uri": "", "dataset_digest": "0" * 64,
        "task": {"label_field": "label", "max_input_tokens": 128, "kind": "text_classification"},
        "method": {"r": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": [], "kind": "lora"},
        "optimization": {"max_steps": 2}, "variants": ["fp32"], "max_eval_examples": 0, "metadata": {},
    }  # fmt: skip
    spec = TrainingSpec.from_json(stored, make_method)
    # A digest that differs would train every earlier run again.
    assert spec.digest("base") == "e51e27b7cb31aabd89552bfd247f35816802ca4e7037968a82bc1fd36f956dc9"
