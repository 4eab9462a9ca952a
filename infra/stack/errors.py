"""Errors of the stack: each message says what to do."""

from __future__ import annotations

from services.kit.errors import FailedPreconditionError


class StackError(FailedPreconditionError):
    """The stack cannot be started, stopped or read in its current state."""

    default_reason = "STACK"


class AssetError(StackError):
    """A file that the stack needs cannot be fetched, or has the wrong content."""

    default_reason = "STACK_ASSET"


class PreflightError(StackError):
    """The machine lacks something that the stack needs."""

    default_reason = "STACK_PREFLIGHT"
