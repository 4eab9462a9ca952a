from __future__ import annotations

from typing import Any

import pytest

from services.telemetry.adapters.store import bulk_outcome
from services.telemetry.domain.document import WriteStatus

_ERROR = {"type": "some_exception", "reason": "it says why"}


@pytest.mark.parametrize(
    ("item", "status"),
    [
        ({"status": 201}, WriteStatus.WRITTEN),
        ({"status": 409, "error": _ERROR}, WriteStatus.DUPLICATE),
        ({"status": 400, "error": _ERROR}, WriteStatus.REFUSED),
        ({"status": 403, "error": _ERROR}, WriteStatus.BUSY),
        ({"status": 404, "error": _ERROR}, WriteStatus.BUSY),
        ({"status": 429, "error": _ERROR}, WriteStatus.BUSY),
        ({"status": 503, "error": _ERROR}, WriteStatus.BUSY),
    ],
)
def test_only_what_is_the_documents_own_fault_is_refused(item: dict[str, Any], status: WriteStatus) -> None:
    outcome = bulk_outcome(item)
    assert outcome.status is status
    assert outcome.reason == (
        "some_exception: it says why" if status in (WriteStatus.REFUSED, WriteStatus.BUSY) else ""
    )


def test_a_refusal_reports_its_cause() -> None:
    error = _ERROR | {"caused_by": {"reason": "the inner one"}}
    assert bulk_outcome({"status": 400, "error": error}).reason == "some_exception: it says why (the inner one)"
