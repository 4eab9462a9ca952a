"""Reviews as Label Studio's JSON: tasks with a prediction out, annotations of people in.

The format is that of Label Studio's import and export (https://labelstud.io/guide/tasks, .../guide/export): a list of
tasks with `data`, `predictions` and `annotations`, whose `result` names a control and an object of the labelling
configuration. Ours has a `Choices` named `label` or a `TextArea` named `correction`, both on the `Text` named `prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.pipeline.v1 import review_pb2
from tidemill.pipeline.v1.review_pb2 import Review, ReviewDecision

from services.kit.errors import FieldViolation, InvalidArgumentError

_CLASSIFY = """<View>
  <Text name="prompt" value="$prompt"/>
  <Choices name="label" toName="prompt" choice="single" value="$labels"/>
</View>
"""
_WRITE = """<View>
  <Text name="prompt" value="$prompt"/>
  <TextArea name="correction" toName="prompt" maxSubmissions="1" editable="true" required="true"/>
</View>
"""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a person decided in Label Studio; `place` names it in the file."""

    place: str
    answer: str
    reviewer: str
    action: review_pb2.ReviewAction.ValueType
    target: str


def labelling_config(classification: bool) -> str:
    """The labelling configuration that fits the tasks."""
    return _CLASSIFY if classification else _WRITE


def to_tasks(reviews: Iterable[Review]) -> list[dict[str, Any]]:
    """Tasks: the model's answer is the prediction, what people decided are annotations; skips are left out."""
    found = list(reviews)
    labels = sorted({name for review in found if review.classification for name in _labels(review)})
    return [_task(review, labels) for review in found]


def from_tasks(text: str) -> Iterator[Annotation]:
    """The annotations of an export, in order. One that was cancelled in Label Studio is left out.

    Raises:
        InvalidArgumentError: the text is not such an export; names the task.
    """
    try:
        tasks = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"The file is not JSON: {error}.", reason="LABEL_STUDIO_FILE") from error
    if not isinstance(tasks, list):
        raise _wrong("the file", "must be a list of tasks: export it as JSON, not as JSON-MIN or CSV")
    for number, task in enumerate(tasks):
        yield from _annotations(f"[{number}]", task)


def _task(review: Review, labels: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = {"answer": review.answer, "prompt": review.prompt, "given": review.given}
    data |= {"model_version": review.model_version, "need": Review.Need.Name(review.need).removeprefix("NEED_").lower()}
    if review.classification:
        data["labels"] = [{"value": label} for label in labels]
    prediction = {
        "model_version": review.model_version,
        "score": review.score,
        "result": _result(review, review.given),
    }
    decided = [item for item in review.decisions if item.action != review_pb2.REVIEW_ACTION_SKIP]
    return {"data": data, "predictions": [prediction], "annotations": [_annotation(review, item) for item in decided]}


def _annotation(review: Review, decision: ReviewDecision) -> dict[str, Any]:
    rejected = decision.action == review_pb2.REVIEW_ACTION_REJECT
    return {
        "completed_by": {"email": decision.reviewer},
        "created_at": decision.decide_time.ToJsonString(),
        # In Label Studio a task that someone refuses is a cancelled annotation.
        "was_cancelled": rejected,
        "result": [] if rejected else _result(review, decision.target or review.given),
    }


def _result(review: Review, value: str) -> list[dict[str, Any]]:
    if review.classification:
        return [{"from_name": "label", "to_name": "prompt", "type": "choices", "value": {"choices": [value]}}]
    return [{"from_name": "correction", "to_name": "prompt", "type": "textarea", "value": {"text": [value]}}]


def _labels(review: Review) -> list[str]:
    return [review.given, *(item.target for item in review.decisions if item.target)]


def _annotations(place: str, task: Any) -> Iterator[Annotation]:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict) or not str(data.get("answer", "")).startswith("answers/"):
        raise _wrong(f"{place}.data.answer", "must name an answer, as `tidemill review export` writes it")
    given = str(data.get("given", ""))
    for number, item in enumerate(task.get("annotations") or ()):
        where = f"{place}.annotations[{number}]"
        if not isinstance(item, dict):
            raise _wrong(where, "must be an object")
        if item.get("was_cancelled"):
            yield Annotation(where, data["answer"], _reviewer(item), review_pb2.REVIEW_ACTION_REJECT, "")
            continue
        kind, value = _value(where, item.get("result"))
        same = value == given
        changed = review_pb2.REVIEW_ACTION_RELABEL if kind == "choices" else review_pb2.REVIEW_ACTION_EDIT
        action = review_pb2.REVIEW_ACTION_ACCEPT if same else changed
        yield Annotation(where, data["answer"], _reviewer(item), action, "" if same else value)


def _value(place: str, result: Any) -> tuple[str, str]:
    for part in result if isinstance(result, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("choices", "textarea"):
            values = part.get("value", {}).get("choices" if kind == "choices" else "text")
            values = [values] if isinstance(values, str) else values
            if isinstance(values, list) and len(values) == 1 and str(values[0]).strip():
                return kind, str(values[0])
    raise _wrong(f"{place}.result", "must have one label (choices) or one text (textarea)")


def _reviewer(item: Mapping[str, Any]) -> str:
    """An e-mail address, or the number of a user, as Label Studio exports either."""
    who = item.get("completed_by")
    name = who.get("email") or who.get("id") if isinstance(who, dict) else who
    return str(name) if name not in (None, "") else "label-studio"


def _wrong(field: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field} {what}.", reason="LABEL_STUDIO_FILE", violations=[FieldViolation(field, what)]
    )
