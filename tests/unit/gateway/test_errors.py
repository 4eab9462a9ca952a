"""Errors at the HTTP doors: every one has a status, and names the caller's own parameter."""

from __future__ import annotations

from gateway.http.errors import STATUS_OF_CODE, code_of_status, openai_error
from services.kit.errors import FieldViolation, InvalidArgumentError, TidemillError


def test_every_error_has_a_status() -> None:
    kinds = TidemillError.__subclasses__()
    assert kinds
    for kind in kinds:
        assert kind.code in STATUS_OF_CODE
    assert [code_of_status(status) for status in (200, 404, 418, 502)] == [
        "OK",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "INTERNAL",
    ]


def test_params_are_named_as_the_caller_wrote_them() -> None:
    error = InvalidArgumentError("m", violations=[FieldViolation("sampling.temperature", "d")])
    assert openai_error(error)["error"]["param"] == "temperature"
