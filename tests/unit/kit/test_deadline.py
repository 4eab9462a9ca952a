"""Work for a call ends before the call does."""

from __future__ import annotations

import time
from contextvars import copy_context

import pytest

from services.kit.deadline import set_call_deadline, work_deadline


@pytest.mark.parametrize(("limit", "reserved"), [(1.0, 0.5), (20.0, 2.0), (600.0, 3.0)])
def test_a_share_of_a_calls_time_is_left_to_answer_it(
    limit: float, reserved: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)

    def ends() -> float | None:
        set_call_deadline(limit)
        return work_deadline()

    assert copy_context().run(ends) == 1000.0 + limit - reserved


def test_without_a_call_there_is_no_deadline() -> None:
    assert copy_context().run(work_deadline) is None
