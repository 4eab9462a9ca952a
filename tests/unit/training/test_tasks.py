"""The tasks of the contract and those of training are the same, and each has its worker."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

import pytest
from tidemill.training.v1 import run_pb2

from services.kit.errors import InvalidArgumentError
from services.training.domain.tasks import TASKS
from services.training.entrypoints.mapping import spec_from
from services.training.worker.sequence import TaskRun

MESSAGES = {
    field.name: {option.name for option in field.message_type.fields}
    for field in run_pb2.TrainingSpec.DESCRIPTOR.oneofs_by_name["task"].fields
    if field.message_type is not None
}


def test_training_has_every_task_of_the_contract() -> None:
    assert TASKS.keys() == MESSAGES.keys()


@pytest.mark.parametrize("name", TASKS)
def test_the_options_of_a_task_are_the_fields_of_its_message(name: str) -> None:
    assert {field.name for field in fields(TASKS[name])} - {"kind"} == MESSAGES[name]
    assert next(field.default for field in fields(TASKS[name]) if field.name == "kind") == name


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_its_worker(name: str) -> None:
    run = import_module(f"services.training.worker.{name}").RUN
    assert issubclass(run, TaskRun)
    # By which it is evaluated, also on slices.
    assert run.MEASURE.name


def test_a_spec_without_a_task_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        spec_from(run_pb2.TrainingSpec(base_model="base"))
    assert refused.value.reason == "TASK_UNKNOWN"
