"""The error for a Triton, or a model in it, that does not answer."""

from __future__ import annotations

import re
from typing import TypeVar

import grpc

from services.kit.engine import FAILED, INVALID, QUEUE_FULL
from services.kit.errors import ResourceExhaustedError, UnavailableError
from services.serving.app.ports import NotLoadedError
from services.serving.domain.names import facts, shown

# How Triton begins its text about a model that it has not loaded (yet).
_NOT_LOADED = "Request for unknown model"
_NOT_PROCESSED = "Failed to process the request(s)"
_DEATH = ("Stub process '", "is not healthy.")
DIED = "its process died while it answered"
# What the scheduler inside Triton says when its queue is full, and how long the caller is to wait.
_QUEUE_FULL = re.compile(re.escape(QUEUE_FULL) + r" (\d+) s\.")

E = TypeVar("E", bound=UnavailableError)


def triton_unavailable(model: str, why: str, retry_after_s: float = 1.0) -> UnavailableError:
    """The error for a request that Triton did not answer.

    Args:
        model: what Triton calls the requested version; empty if the request names none.
        why: the cause, without a full stop.
        retry_after_s: when a retry may succeed, in seconds.
    """
    return _error(UnavailableError, model, why, retry_after_s)


def is_not_loaded(details: str, code: grpc.StatusCode | None = None) -> bool:
    """Whether Triton says that it does not have a version; `code` is None where it reports errors as text alone."""
    return code is grpc.StatusCode.NOT_FOUND or details.startswith(_NOT_LOADED)


def not_loaded(model: str, retry_after_s: float) -> NotLoadedError:
    """The error for a version that Triton does not have; `retry_after_s` is when it may have it."""
    return _error(NotLoadedError, model, "Triton is loading it, or has unloaded it", retry_after_s)


def queue_full(model: str, details: str) -> ResourceExhaustedError | None:
    """The error for a model whose queue is full; None if Triton says something else."""
    full = _QUEUE_FULL.search(details)
    if full is None:
        return None
    # Not UNAVAILABLE, which channels ask again at once: that would only lengthen the queue.
    return ResourceExhaustedError(
        f"{shown(model)} is busy: {details}",
        reason="MODEL_BUSY",
        metadata=facts(model),
        retry_after_s=float(full.group(1)),
    )


def status_of_text(text: str) -> tuple[grpc.StatusCode, str]:
    """The status and the message of an error that Triton reports in a stream, where it gives a text only."""
    if text.startswith(INVALID):
        return grpc.StatusCode.INVALID_ARGUMENT, text.removeprefix(INVALID)
    if text.startswith(FAILED):
        return grpc.StatusCode.INTERNAL, text.removeprefix(FAILED)
    if is_not_loaded(text):
        return grpc.StatusCode.NOT_FOUND, text
    if _QUEUE_FULL.search(text):
        return grpc.StatusCode.UNAVAILABLE, text
    # Triton itself refuses tensors that a model does not take, and says what failed otherwise.
    failed = text.startswith(_NOT_PROCESSED) or is_death(text)
    return grpc.StatusCode.INTERNAL if failed else grpc.StatusCode.INVALID_ARGUMENT, text


def is_death(text: str) -> bool:
    """Whether Triton says that the process of a model is dead."""
    return text.startswith(_DEATH[0]) and text.endswith(_DEATH[1])


def _error(kind: type[E], model: str, why: str, retry_after_s: float) -> E:
    return kind(
        f"{shown(model) if model else 'Triton'} is not available: {why.rstrip('. ')}. Retry later.",
        reason="TRITON_UNAVAILABLE",
        metadata=facts(model) if model else {},
        retry_after_s=retry_after_s,
    )
