"""What an error means to whoever waits for a long-running operation."""

from __future__ import annotations

import errno

from services.kit.errors import FailedPreconditionError
from services.kit.failure import Failure


def test_an_error_of_ours_keeps_its_reason_and_facts() -> None:
    error = FailedPreconditionError("Publish it first.", reason="NOT_PUBLISHED", metadata={"model": "m"})

    assert Failure.of(error, "The roll-out") == Failure("NOT_PUBLISHED", "Publish it first.", {"model": "m"})


def test_a_full_disk_is_named_wherever_it_was_met() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/data/part-0.parquet")
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("the writer gave up") from error
    except RuntimeError as error:
        failure = Failure.of(error, "The build")

    assert failure.reason == "DISK_FULL"


def test_a_defect_says_what_failed_and_stays_short() -> None:
    failure = Failure.of(ValueError("x" * 5000), "The build")

    assert failure.reason == "UNEXPECTED"
    assert failure.message.startswith("The build failed (ValueError: xxx")
    assert len(failure.message) <= 1000
