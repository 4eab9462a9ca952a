"""The mesh's errors, with the facts that it sends along (google.rpc.Status; https://google.aip.dev/193)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of the request that is wrong."""

    field: str
    description: str


@dataclass(eq=False)
class TidemillError(Exception):
    """A call that failed."""

    code: str
    """gRPC's name: `NOT_FOUND`, `INVALID_ARGUMENT`, `DEADLINE_EXCEEDED` and so on."""
    message: str
    """What is wrong and what to do, for people."""
    reason: str = ""
    """What a program may distinguish, such as `MODEL_NOT_FOUND`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    """Seconds after which another try may help."""

    def __str__(self) -> str:
        fields = "".join(f"\n  {item.field}: {item.description}" for item in self.violations)
        return f"{self.code}: {self.message}{fields}"

    @classmethod
    def of(cls, error: Any) -> TidemillError:
        """From the `grpc.RpcError` of a call."""
        code, message = error.code().name, error.details() or ""
        packed = dict(error.trailing_metadata() or ()).get(_DETAILS)
        status = status_pb2.Status.FromString(packed) if isinstance(packed, bytes) else status_pb2.Status()
        reason, metadata, violations, retry_after = "", {}, [], None
        for detail in status.details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                violations += [Violation(item.field, item.description) for item in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        return cls(code, message, reason, metadata, tuple(violations), retry_after)
