from __future__ import annotations

from typing import Any

import pytest

from services.telemetry.adapters.store import bulk_outcome
from services.telemetry.domain.document import Fate

_ERROR = {"type": "some_exception", "reason": "it says why"}


@pytest.mark.parametrize(
    ("item", "fate"),
    [
        ({"status": 201}, Fate.WRITTEN),
        ({"status": 409, "error": _ERROR}, Fate.DUPLICATE),
        ({"status": 400, "error": _ERROR}, Fate.REFUSED),
        ({"status": 403, "error": _ERROR}, Fate.BUSY),
        ({"status": 404, "error": _ERROR}, Fate.BUSY),
        ({"status": 429, "error": _ERROR}, Fate.BUSY),
        ({"status": 503, "error": _ERROR}, Fate.BUSY),
    ],
)
def test_only_what_is_the_documents_own_fault_is_refused(item: dict[str, Any], fate: Fate) -> None:
    outcome = bulk_outcome(item)
    assert outcome.fate is fate
    assert outcome.reason == ("some_exception: it says why" if fate in (Fate.REFUSED, Fate.BUSY) else "")


def test_a_refusal_tells_its_cause() -> None:
    error = _ERROR | {"caused_by": {"reason": "the inner one"}}
    assert bulk_outcome({"status": 400, "error": error}).reason == "some_exception: it says why (the inner one)"
