"""Reviews as Label Studio's JSON, out and in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tidemill.pipeline.v1 import review_pb2
from tidemill.pipeline.v1.review_pb2 import Review, ReviewDecision

from gateway.cli.label_studio import Annotation, from_tasks, labelling_config, to_tasks
from services.kit.errors import InvalidArgumentError

VERSION = "models/reviews/versions/3"


def label(answer: str, given: str = "positive", **other: Any) -> Review:
    return Review(
        answer=answer, prompt=f"text of {answer}", given=given, classification=True, score=0.6,
        model_version=VERSION, need=Review.NEED_LOW_CONFIDENCE, **other,
    )  # fmt: skip


def test_tasks_carry_prediction_labels_and_what_was_decided() -> None:
    decision = ReviewDecision(reviewer="anna", action=review_pb2.REVIEW_ACTION_RELABEL, target="negative")
    skip = ReviewDecision(reviewer="ben", action=review_pb2.REVIEW_ACTION_SKIP)
    first, second = to_tasks([label("answers/a"), label("answers/b", decisions=[skip, decision])])
    assert first["data"] == {
        "answer": "answers/a",
        "prompt": "text of answers/a",
        "given": "positive",
        "model_version": VERSION,
        "need": "low_confidence",
        "labels": [{"value": "negative"}, {"value": "positive"}],
    }
    (prediction,) = first["predictions"]
    assert prediction["result"] == [
        {"from_name": "label", "to_name": "prompt", "type": "choices", "value": {"choices": ["positive"]}}
    ]
    (annotation,) = second["annotations"]
    assert annotation["completed_by"] == {"email": "anna"}
    # Each control that a result names is in the configuration.
    assert 'name="label" toName="prompt"' in labelling_config(True)
    assert 'name="correction" toName="prompt"' in labelling_config(False)


def test_what_was_exported_and_decided_comes_back() -> None:
    text = Review(answer="answers/w", prompt="p", given="given", model_version="models/m/versions/1")
    tasks = json.loads(json.dumps(to_tasks([label("answers/a"), label("answers/b"), text, text, label("answers/c")])))

    def decide(number: int, who: Any, value: dict[str, Any] | None, kind: str = "choices") -> None:
        result = [] if value is None else [{"from_name": "x", "to_name": "prompt", "type": kind, "value": value}]
        tasks[number]["annotations"] = [{"completed_by": who, "was_cancelled": value is None, "result": result}]

    # As Label Studio exports who annotated: an object, or the number of a user.
    decide(0, {"id": 1, "email": "anna@example.org"}, {"choices": ["negative"]})
    decide(1, 7, {"choices": ["positive"]})
    decide(2, {"email": "ben"}, {"text": ["better"]}, "textarea")
    decide(3, {"email": "ben"}, {"text": "given"}, "textarea")
    decide(4, None, None)
    relabel, accept = review_pb2.REVIEW_ACTION_RELABEL, review_pb2.REVIEW_ACTION_ACCEPT
    assert list(from_tasks(json.dumps(tasks))) == [
        Annotation("[0].annotations[0]", "answers/a", "anna@example.org", relabel, "negative"),
        Annotation("[1].annotations[0]", "answers/b", "7", accept, ""),
        Annotation("[2].annotations[0]", "answers/w", "ben", review_pb2.REVIEW_ACTION_EDIT, "better"),
        Annotation("[3].annotations[0]", "answers/w", "ben", accept, ""),
        Annotation("[4].annotations[0]", "answers/c", "label-studio", review_pb2.REVIEW_ACTION_REJECT, ""),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "The file is not JSON"),
        ('{"a": 1}', "the file must be a list of tasks"),
        ('[{"data": {"prompt": "p"}}]', "[0].data.answer must name an answer"),
        ('[{"data": {"answer": "answers/a"}, "annotations": [7]}]', "[0].annotations[0] must be an object"),
        (
            '[{"data": {"answer": "answers/a"}, "annotations": [{"result": [{"type": "choices", "value": '
            '{"choices": ["a", "b"]}}]}]}]',
            "[0].annotations[0].result must have one label",
        ),
    ],
)
def test_a_file_that_is_no_export_names_the_place(content: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        list(from_tasks(content))
    assert caught.value.message.startswith(said)
