"""Errors over gRPC: the tree of `services.kit.errors` to google.rpc.Status and back.

ErrorInfo carries reason, the domain `tidemill` and metadata; BadRequest carries field violations; RetryInfo says
when a retry helps (https://google.aip.dev/193).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.kit import errors as tree

ERROR_DOMAIN = "tidemill"
# The metadata key in which gRPC carries a google.rpc.Status.
_DETAILS_KEY = "grpc-status-details-bin"
# A status travels as trailing metadata, of which gRPC guarantees 8 KiB. A larger one arrives as "metadata size
# exceeds limit", without what was wrong.
_MAX_MESSAGE = 1000
_MAX_FACT = 300
_MAX_VIOLATIONS = 2000


def _subclasses(kind: type[tree.TidemillError]) -> Iterator[type[tree.TidemillError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def to_status(error: tree.TidemillError) -> status_pb2.Status:
    """An error as a google.rpc.Status."""
    details: list[any_pb2.Any] = []

    def add(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)

    message = _fitting(error.message, _MAX_MESSAGE)
    metadata = {_fitting(key, _MAX_FACT): _fitting(value, _MAX_FACT) for key, value in error.metadata.items()}
    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata))
    if error.violations:
        add(_bad_request(error.violations))
    if error.wait_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.wait_s * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=message, details=details)


def _bad_request(violations: Sequence[tree.FieldViolation]) -> error_details_pb2.BadRequest:
    """As many violations as fit, then the number of those left out."""
    bad, size = error_details_pb2.BadRequest(), 0
    for number, violation in enumerate(violations):
        field, why = _fitting(violation.field, _MAX_FACT), _fitting(violation.description, _MAX_FACT)
        size += len(field.encode()) + len(why.encode()) + 8
        if size > _MAX_VIOLATIONS:
            bad.field_violations.add(description=f"and {len(violations) - number:,} more")
            break
        bad.field_violations.add(field=field, description=why)
    return bad


def _fitting(text: str, limit: int) -> str:
    """The text, cut to `limit` bytes of gRPC's percent encoding; invalid Unicode becomes `?`.

    A file name, for example, may contain bytes that are not UTF-8, which Python keeps as lone surrogates.
    """
    text = text.encode("utf-8", "replace").decode()
    room = limit
    for at, character in enumerate(text):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if room < 0:
            return f"{text[:at]}…"
    return text


def from_rpc_error(error: grpc.RpcError) -> tree.TidemillError:
    """The error that a peer raised, restored from its status; an unknown code becomes InternalError."""
    assert isinstance(error, grpc.aio.AioRpcError | grpc.Call)
    name = error.code().name
    kinds = {kind.code: kind for kind in _subclasses(tree.TidemillError) if kind.__module__ == tree.__name__}
    kind = kinds.get(name, tree.InternalError)
    reason: str | None = None
    metadata: dict[str, str] = {}
    violations: list[tree.FieldViolation] = []
    retry_after: float | None = None
    status = _status_of(error)
    for detail in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [tree.FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    message = error.details() or name
    return kind(message, reason=reason, metadata=metadata, violations=violations, retry_after_s=retry_after)


def _status_of(error: grpc.aio.AioRpcError | grpc.Call) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
    return None


@contextmanager
def translate_rpc_errors(peer: str) -> Iterator[None]:
    """Raises the peer's error as ours; `peer` names the service if it did not respond at all."""
    try:
        yield
    except grpc.RpcError as error:
        translated = from_rpc_error(error)
        # Without a reason from the peer, gRPC itself speaks: the peer was unreachable or too slow.
        if isinstance(translated, tree.UnavailableError) and translated.reason == "UNAVAILABLE":
            translated = tree.peer_away(peer, translated.message, translated.retry_after_s or 1.0)
        elif isinstance(translated, tree.DeadlineExceededError) and not translated.metadata:
            translated = tree.DeadlineExceededError(
                f"The {peer} service did not answer in time.", metadata={"peer": peer}
            )
        elif tree.is_retryable(translated):
            # So that a caller that waits can name the peer.
            translated.metadata.setdefault("peer", peer)
        raise translated from error
