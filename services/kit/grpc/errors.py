"""Errors over gRPC: the tree of `services.kit.errors` to google.rpc.Status and back.

ErrorInfo carries reason, the domain `tidemill` and metadata; BadRequest carries field violations; RetryInfo says
when a retry helps (https://google.aip.dev/193).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.kit import errors as tree

ERROR_DOMAIN = "tidemill"
# Where gRPC carries a google.rpc.Status.
_DETAILS_KEY = "grpc-status-details-bin"


def _subclasses(kind: type[tree.TidemillError]) -> Iterator[type[tree.TidemillError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def to_status(error: tree.TidemillError) -> status_pb2.Status:
    """The wire form of an error."""
    details: list[any_pb2.Any] = []

    def add(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if error.violations:
        add(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations
                ]
            )
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message, details=details)


def from_rpc_error(error: grpc.RpcError) -> tree.TidemillError:
    """The error that a peer raised, rebuilt from its status; an unknown code becomes InternalError."""
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
    """Raises the peer's error as ours; `peer` is named where it does not answer at all."""
    try:
        yield
    except grpc.RpcError as error:
        translated = from_rpc_error(error)
        if isinstance(translated, tree.UnavailableError) and translated.reason == "UNAVAILABLE":
            translated = tree.UnavailableError(
                f"The {peer} service does not answer: {translated.message}",
                reason="PEER_UNAVAILABLE",
                metadata={"peer": peer},
                retry_after_s=translated.retry_after_s or 1.0,
            )
        raise translated from error
