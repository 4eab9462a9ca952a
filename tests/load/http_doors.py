"""The doors of a mesh that speak HTTP: OpenAI's API, KServe V2, records, feedback, alerts, batches and look-ups."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.load.caller import (
    CLASSIFIER,
    SOURCE,
    TIMEOUT_S,
    WRITER,
    Caller,
    Door,
    RefusedError,
    http_errors,
    refuse,
)
from tests.waiting import wait_until

WRITTEN = 8
"""Tokens of an answer."""

_LINES = 3  # of a batch
_V2 = "/v2/models/{model}"
_LOOK_UPS = (
    *("/v1/models", "/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v2", "/v2/models/stats"),
    *(
        f"{_V2}{version}{what}"
        for version in ("", "/versions/{version}")
        for what in ("", "/ready", "/config", "/stats")
    ),
)


def record_text(mark: str) -> str:
    """The text of a record; some are too short for the data set."""
    return mark[-6:] if mark.endswith("0") else f"a pushed record {mark}"


def _chat(caller: Caller, mark: str) -> None:
    caller.note_answer(caller.post("/v1/chat/completions", _chat_body(mark))["id"])


def _chat_stream(caller: Caller, mark: str) -> None:
    answer = ""
    for piece in _pieces(caller, "/v1/chat/completions", {**_chat_body(mark), "stream": True}):
        answer = piece["id"]
    caller.note_answer(answer)


def _chat_body(mark: str) -> dict[str, Any]:
    return {
        "model": WRITER,
        "max_tokens": WRITTEN,
        "messages": [{"role": "user", "content": f"the room {mark}"}],
    }


def _completions(caller: Caller, mark: str) -> None:
    body = {"model": WRITER, "max_tokens": WRITTEN, "prompt": [f"the room {mark}", "the room"]}
    for choice in caller.post("/v1/completions", body)["choices"]:
        caller.note_answer(choice["answer"])


def _completions_stream(caller: Caller, mark: str) -> None:
    body = {"model": WRITER, "max_tokens": WRITTEN, "prompt": f"the room {mark}", "stream": True}
    answer = ""
    for piece in _pieces(caller, "/v1/completions", body):
        answer = piece["id"]
    caller.note_answer(answer)


def _responses(caller: Caller, mark: str) -> None:
    body = {"model": WRITER, "max_output_tokens": WRITTEN, "input": f"the room {mark}"}
    caller.note_answer(caller.post("/v1/responses", body)["id"])


def _responses_stream(caller: Caller, mark: str) -> None:
    body = {"model": WRITER, "max_output_tokens": WRITTEN, "input": f"the room {mark}", "stream": True}
    for event in map(json.loads, _events(caller, "/v1/responses", body)):
        if event["type"] == "response.failed":
            error = event["response"]["error"]
            busy = error["code"] == "rate_limit_exceeded"
            raise RefusedError("RESOURCE_EXHAUSTED" if busy else "UNAVAILABLE", error["message"])
        if event["type"] in ("response.completed", "response.incomplete"):
            caller.note_answer(event["response"]["id"])
            return
    raise RefusedError("UNAVAILABLE", "the stream ended in the middle")


def _pieces(caller: Caller, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
    """The pieces of a stream that ends with `[DONE]`.

    Raises:
        RefusedError: it has an error, or its connection ends before that.
    """
    for data in _events(caller, path, body):
        if data == "[DONE]":
            return
        piece = json.loads(data)
        if error := piece.get("error"):
            busy = error["type"] == "rate_limit_error"
            raise RefusedError("RESOURCE_EXHAUSTED" if busy else "UNAVAILABLE", error["message"])
        yield piece
    raise RefusedError("UNAVAILABLE", "the stream ended in the middle")


def _events(caller: Caller, path: str, body: Mapping[str, Any]) -> Iterator[str]:
    """The data of server-sent events, until the connection ends. Raises as `Caller.send`."""
    with http_errors(), caller.http.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            response.read()
            refuse(response)
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def _embeddings(caller: Caller, mark: str) -> None:
    [first, second] = caller.post("/v1/embeddings", {"model": CLASSIFIER, "input": [f"good {mark}", "bad"]})["data"]
    assert len(first["embedding"]) == len(second["embedding"]) > 0
    assert first["embedding"] != second["embedding"]


def _predict(caller: Caller, mark: str) -> None:
    _note_predictions(caller, caller.post("/v1/predict", {"model": CLASSIFIER, "texts": [f"good {mark}", "bad"]}))


def _note_predictions(caller: Caller, body: Any) -> None:
    assert [item["label"] for item in body["predictions"]] == ["positive", "negative"]
    for item in body["predictions"]:
        caller.note_answer(item["answer"])


def _v2(caller: Caller, mark: str) -> None:
    _infer(caller, f"/v2/models/{CLASSIFIER}/infer", mark)


def _v2_version(caller: Caller, mark: str) -> None:
    _infer(caller, f"/v2/models/{CLASSIFIER}/versions/1/infer", mark)


def _infer(caller: Caller, path: str, mark: str) -> None:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [[f"good room {mark}"]]}
    outputs = caller.post(path, {"inputs": [tensor]})["outputs"]
    assert any(output["name"] == "scores" for output in outputs)


def _records(caller: Caller, mark: str) -> None:
    text = record_text(mark)
    caller.ledgers.records.sent(mark, text)
    record = {"source": SOURCE, "record_id": mark, "text": text}
    assert caller.post("/v1/records", {"records": [record], "request_id": mark})["record_ids"] == [mark]
    caller.ledgers.records.accepted(mark, text)


def _feedback(caller: Caller, mark: str) -> None:
    judgement = _judgement(caller.judged(mark), mark)
    caller.ledgers.feedback.sent(mark, judgement["correction"])
    with http_errors():
        response = caller.http.post("/v1/feedback", json=judgement, headers={"idempotency-key": mark})
    if response.status_code not in (200, 202):  # 202: its answer's event has not arrived yet
        refuse(response)
    caller.ledgers.feedback.accepted(mark, judgement["correction"])


def _feedback_batch(caller: Caller, mark: str) -> None:
    answer, marks = caller.judged(mark), (mark, f"{mark}b")
    judgements = [{**_judgement(answer, each), "request_id": each} for each in marks]
    for each, judgement in zip(marks, judgements, strict=True):
        caller.ledgers.feedback.sent(each, judgement["correction"])
    caller.send("POST", "/v1/feedback/batch", json={"judgements": judgements}, headers={"idempotency-key": mark})
    for each, judgement in zip(marks, judgements, strict=True):
        caller.ledgers.feedback.accepted(each, judgement["correction"])


def _judgement(answer: str, mark: str) -> dict[str, Any]:
    return {"answer": answer, "rating": 0.5, "author": mark, "correction": f"better {mark}"}


def _alerts(caller: Caller, mark: str) -> None:
    alert = {
        "status": "firing",
        "labels": {"alertname": "Load", "pipeline": "no-such-pipeline"},
        "startsAt": "2026-01-01T00:00:00Z",
        "fingerprint": mark,
    }
    assert caller.post("/v1/alerts", {"alerts": [alert]}) == {"taken": 0, "received": 1}


def _batch(caller: Caller, mark: str) -> None:
    """A whole batch, from its file to its answers, and what is listed meanwhile."""
    file, batch = _new_batch(caller, mark)
    assert any(item["id"] == file for item in caller.send("GET", "/v1/files").json()["data"])
    assert caller.send("GET", f"/v1/files/{file}").json()["purpose"] == "batch"
    assert caller.send("GET", "/v1/batches").json()["data"]
    ended = _ended(caller, batch)
    assert (ended["status"], ended["request_counts"]["completed"]) == ("completed", _LINES), ended
    output = ended["output_file_id"]
    lines = [json.loads(line) for line in caller.send("GET", f"/v1/files/{output}/content").text.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == [str(number) for number in range(_LINES)]
    for line in lines:
        _note_predictions(caller, line["response"]["body"])
    for each in (file, output):
        caller.send("DELETE", f"/v1/files/{each}")


def _batch_cancelled(caller: Caller, mark: str) -> None:
    """A batch that is cancelled as soon as it is made; one that ended before that is made again."""
    while True:
        file, batch = _new_batch(caller, mark)
        with http_errors():
            response = caller.http.post(f"/v1/batches/{batch}/cancel")
        if response.status_code not in (200, 409):
            refuse(response)
        ended = _ended(caller, batch)
        for each in filter(None, (file, ended["output_file_id"])):
            caller.send("DELETE", f"/v1/files/{each}")
        if response.status_code == 200:
            # It may have come to its end between the order and the next look at it.
            assert ended["status"] in ("cancelled", "completed"), ended
            return


def _new_batch(caller: Caller, mark: str) -> tuple[str, str]:
    """Ids of an uploaded file and of the batch that is made of it."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/predict",
            "body": {"model": CLASSIFIER, "texts": [f"good {mark} {number}", "bad"]},
        }
        for number in range(_LINES)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    files = {"file": ("load.jsonl", content, "application/jsonl")}
    file = caller.send("POST", "/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
    body = {"input_file_id": file, "endpoint": "/v1/predict", "completion_window": "24h"}
    return file, caller.post("/v1/batches", body)["id"]


def _ended(caller: Caller, batch: str) -> Any:
    def look() -> Any:
        found = caller.send("GET", f"/v1/batches/{batch}").json()
        return found if found["status"] in ("completed", "cancelled", "failed", "expired") else None

    try:
        return wait_until(look, f"the end of {batch}", TIMEOUT_S)
    except AssertionError as error:
        raise RefusedError("DEADLINE_EXCEEDED", str(error)) from error


def _look_up(caller: Caller, _mark: str) -> None:
    for path in _LOOK_UPS:
        with http_errors():
            response = caller.http.get(path.format(model=CLASSIFIER, version="1"))
        if path.endswith("/ready") and response.status_code == 404:
            raise RefusedError("UNAVAILABLE", "the model is not loaded")
        if response.status_code != 200:
            refuse(response)


HTTP_DOORS: Mapping[str, Door] = {
    "openai chat": Door(_chat, ("POST /v1/chat/completions",)),
    "openai chat stream": Door(_chat_stream, ("POST /v1/chat/completions",)),
    "openai completions": Door(_completions, ("POST /v1/completions",)),
    "openai completions stream": Door(_completions_stream, ("POST /v1/completions",)),
    "openai responses": Door(_responses, ("POST /v1/responses",)),
    "openai responses stream": Door(_responses_stream, ("POST /v1/responses",)),
    "openai embeddings": Door(_embeddings, ("POST /v1/embeddings",)),
    "openai batch": Door(
        _batch,
        (
            *("POST /v1/files", "GET /v1/files", "GET /v1/files/{file_id}", "GET /v1/files/{file_id}/content"),
            *("DELETE /v1/files/{file_id}", "POST /v1/batches", "GET /v1/batches", "GET /v1/batches/{batch_id}"),
        ),
    ),
    "openai batch cancelled": Door(_batch_cancelled, ("POST /v1/batches/{batch_id}/cancel",)),
    "http predict": Door(_predict, ("POST /v1/predict",)),
    "http v2": Door(_v2, (f"POST {_V2}/infer",)),
    "http v2 version": Door(_v2_version, (f"POST {_V2}/versions/{{version}}/infer",)),
    "http records": Door(_records, ("POST /v1/records",)),
    "http feedback": Door(_feedback, ("POST /v1/feedback",)),
    "http feedback batch": Door(_feedback_batch, ("POST /v1/feedback/batch",)),
    "http alerts": Door(_alerts, ("POST /v1/alerts",)),
    "http look-ups": Door(_look_up, tuple(f"GET {path}" for path in _LOOK_UPS)),
}
