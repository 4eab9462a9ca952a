"""Requests whose callers have gone, as the gateway reports them: it cancels none in Triton, for that can crash it."""

from __future__ import annotations

import json

# Names as in services.serving.adapters.triton_tensors, which this package cannot import.
REQUEST, GONE = "tidemill_request", "tidemill_gone"
_KEPT = 4096


class Departures:
    """The newest of them. Written by one thread, read by another."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def note(self, parameters: str) -> bool:
        """Whether a request's parameters, JSON, report a departure; it may come before the request that it is about."""
        gone = _read(parameters, GONE)
        if not gone:
            return False
        self._ids[gone] = None
        if len(self._ids) > _KEPT:
            del self._ids[next(iter(self._ids))]
        return True

    def has(self, request_id: str) -> bool:
        """Whether the caller of this request has gone."""
        return request_id in self._ids


def request_id(parameters: str) -> str:
    """The gateway's id of a request; empty if it has none."""
    return _read(parameters, REQUEST)


def _read(parameters: str, name: str) -> str:
    return str(json.loads(parameters or "{}").get(name, ""))
