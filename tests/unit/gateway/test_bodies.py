"""Bodies that flow back into the loop: what is wrong is named by its path, and `/docs` says what is read."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.bodies import Body, ChatBody, FeedbackBody, RecordsBody, described, read_body
from services.kit.errors import InvalidArgumentError

RECORD: dict[str, Any] = {"source": "s", "text": "t"}


@pytest.mark.parametrize(
    ("model", "body", "path"),
    [
        (FeedbackBody, {"answer": "a"}, "rating"),
        (FeedbackBody, {"rating": 1}, "answer"),
        (FeedbackBody, {"answer": "a", "rating": 2}, "rating"),
        (FeedbackBody, {"answer": "a", "rating": True}, "rating"),
        (FeedbackBody, {"answer": "a", "rating": "1"}, "rating"),
        (FeedbackBody, {"answer": "a", "rating": 1, "correction": 1}, "correction"),
        (FeedbackBody, {"answer": "a", "rating": 1, "why": ""}, "why"),
        (RecordsBody, {}, "records"),
        (RecordsBody, {"records": []}, "records"),
        (RecordsBody, {"records": [RECORD] * 1001}, "records"),
        (RecordsBody, {"records": [RECORD, "x"]}, "records[1]"),
        (RecordsBody, {"records": [RECORD, {**RECORD, "text": 1}]}, "records[1].text"),
        (RecordsBody, {"records": [{**RECORD, "id": "1"}]}, "records[0].id"),
        (RecordsBody, {"records": [{**RECORD, "attributes": {"a": 1}}]}, "records[0].attributes.a"),
        (RecordsBody, {"records": [RECORD], "request": "x"}, "request"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(model: type[Body], body: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_body(model, body)
    assert [violation.field for violation in caught.value.violations] == [path]
    assert path in caught.value.message


def test_null_is_as_good_as_left_out() -> None:
    body = read_body(RecordsBody, {"records": [{**RECORD, "record_id": None, "attributes": None}], "request_id": None})
    assert (body.records[0].record_id, body.records[0].attributes, body.request_id) == ("", {}, "")


def test_the_document_requires_what_is_required() -> None:
    for model, required in ((ChatBody, ["model", "messages"]), (FeedbackBody, ["answer"])):
        content = described(model, "x")["openapi_extra"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["required"] == required
        assert not content["schema"]["additionalProperties"]
