"""Which students a spec may name, and how they are named, stored and planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tidemill.training.v1 import run_pb2

from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import violations_of
from services.training.domain.machine import Machine
from services.training.domain.students import Distillation, Student
from services.training.domain.tasks import GenerationTask, TextClassificationTask
from services.training.domain.training_spec import BaseModel, Optimization, TrainingSpec
from services.training.engine.methods import stored_method
from services.training.engine.methods.full import Full
from services.training.engine.methods.lora import Lora
from services.training.engine.run_plan import plan_run
from services.training.entrypoints.mapping import spec_from, spec_to

_BGE = BaseModel("bge", "1", "encoder", 512, "bert", layers=4, heads=8, vocabulary=21128)


def _spec(*students: Student, **changes: Any) -> TrainingSpec:
    spec = TrainingSpec(
        "m", "bge", "datasets/d/versions/1", "", "0" * 64, TextClassificationTask("label", 64), Lora(),
        Optimization(max_steps=2, batch_size=8), students=students,
    )  # fmt: skip
    return replace(spec, **changes)


def _refused(error: InvalidArgumentError) -> list[tuple[str, str]]:
    return [(each.field, each.description) for each in error.violations]


@pytest.mark.parametrize(
    ("student", "name"),
    [
        (Student(layers=2), "int8-l2"),
        (Student(feed_forward=0.5, precision="fp32"), "fp32-f50"),
        (Student(2, 1 / 3, 4, 6000), "int8-l2-f33-h4-v6000"),
        (Student(layers=1, feed_forward=0.001), "int8-l1-f1"),
    ],
)
def test_a_build_has_the_name_of_what_stays(student: Student, name: str) -> None:
    assert student.name == name


@pytest.mark.parametrize(
    ("students", "changes", "field", "said"),
    [
        ([Student()], {}, "spec.compression.students[0]", "name what is made smaller"),
        ([Student(layers=2), Student(layers=2)], {}, "spec.compression.students[1]", r"the name int8-l2, as .*\[0\]"),
        (
            [Student(layers=2)],
            {"task": GenerationTask("{text}", "answer")},
            "spec.compression.students",
            "for classification",
        ),
        ([], {"distillation": Distillation(epochs=1)}, "spec.compression.distillation", "there is no student"),
        (
            [Student(layers=2)],
            {"distillation": Distillation(max_steps=5, epochs=1)},
            "spec.compression.distillation",
            "at most one",
        ),
    ],
)
def test_students_that_cannot_be_are_refused_with_their_field(
    students: list[Student], changes: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as refused:
        _spec(*students, **changes)
    assert [name for name, _ in _refused(refused.value)] == [field]


@pytest.mark.parametrize(
    ("student", "base", "field", "said"),
    [
        (Student(layers=5), _BGE, "spec.compression.students[0].layers", "5 is more than the 4 of bge"),
        (Student(heads=9), _BGE, "spec.compression.students[0].heads", "9 is more than the 8 of bge"),
        (Student(vocabulary=30000), _BGE, "spec.compression.students[0].vocabulary", "30000 is more than the 21128"),
        (Student(layers=2), replace(_BGE, family="modernbert"), "spec.compression.students", "made of bert,"),
        (Student(layers=2), replace(_BGE, family=""), "spec.compression.students", "unknown kind"),
    ],
)
def test_a_base_model_that_has_less_is_refused_before_anything_starts(
    student: Student, base: BaseModel, field: str, said: str
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        _spec(student).check_base(base)
    assert [name for name, _ in _refused(refused.value)] == [field]
    assert said in refused.value.message


def test_the_base_model_of_the_example_can_have_students() -> None:
    _spec(Student(4, 0.5, 8, 21128)).check_base(_BGE)


def test_students_survive_storing_and_the_contract() -> None:
    spec = _spec(Student(layers=2, feed_forward=0.5), Student(layers=2, precision="fp32"))
    spec = replace(spec, distillation=Distillation(epochs=2, temperature=4))
    assert TrainingSpec.from_json(spec.to_json(), stored_method) == spec
    again = spec_from(spec_to(spec))
    assert (again.students, again.distillation) == (spec.students, spec.distillation)


def test_a_run_without_students_is_that_of_earlier_releases() -> None:
    stored = _spec().to_json()
    del stored["students"], stored["distillation"]
    assert TrainingSpec.from_json(stored, stored_method) == _spec()
    # Its digest did not change when students came.
    assert _spec().digest("b") == "a7e8d54bdf6824156c5cc7e9d6fee752c94e3854963b585d5ca3801f8b71c957"
    assert _spec(Student(layers=2)).digest("b") != _spec().digest("b")
    assert _spec(Student(layers=2)).digest("b") != _spec(Student(layers=1)).digest("b")


@pytest.mark.parametrize(
    ("compression", "said"),
    [
        ({"students": [{"precision": "int8"}]}, "name what is made smaller"),
        ({"students": [{"layers": -1}]}, "greater than or equal to 0"),
        ({"students": [{"layers": 2, "precision": "int4"}]}, "must be in list"),
        ({"students": [{"layers": 2}], "distillation": {"max_steps": 3, "epochs": 1}}, "at most one"),
        ({"distillation": {"epochs": 1}}, "there are none"),
    ],
)
def test_the_contract_refuses_what_no_run_could_do(compression: dict[str, Any], said: str) -> None:
    message = ParseDict({"variants": ["int8"], **compression}, run_pb2.Compression())
    assert any(said in violation.description for violation in violations_of(message))


def test_the_plan_of_memory_holds_teacher_and_student() -> None:
    config = {
        "vocab_size": 21128, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "intermediate_size": 2048, "max_position_embeddings": 512, "type_vocab_size": 2,
    }  # fmt: skip
    machine = Machine("cpu", 8 * 10**9, 1, half=False)

    def peak(spec: TrainingSpec) -> int:
        return plan_run(spec, config, machine).chosen.memory.peak

    alone = peak(_spec())
    # Adapters have few moments; a student has those of all its layers, and the teacher beside it.
    assert peak(_spec(Student(layers=4, feed_forward=0.5))) > alone + 50 * 10**6
    assert peak(_spec(Student(layers=4))) > peak(_spec(Student(layers=1))) >= alone
    # One student learns after the other.
    both = peak(_spec(Student(layers=4), Student(layers=1)))
    assert both == peak(_spec(Student(layers=4)))
    # Full fine-tuning takes more than a small student.
    full = _spec(method=Full())
    assert peak(replace(full, students=(Student(layers=1, vocabulary=6000),))) == peak(full)
