"""The one tree of errors that use cases raise.

Each class stands for a canonical RPC code. `reason` is stable and meant for programs, the message is one sentence
for people, `metadata` holds the facts. Each transport maps the tree in one place (`services.kit.grpc.errors`), so
domain code knows no transport.

    TidemillError
    ├── InvalidArgumentError      the caller must change the request
    ├── FailedPreconditionError   the system must be in another state first
    ├── NotFoundError
    ├── AlreadyExistsError
    ├── AbortedError              a concurrent change won; read again and retry
    ├── UnauthenticatedError
    ├── PermissionDeniedError
    ├── ResourceExhaustedError    retry later, see wait_s
    ├── DeadlineExceededError
    ├── UnavailableError          a dependency is unavailable; retry, see wait_s
    ├── DataLossError             stored data is damaged; a person must restore it
    └── InternalError             a bug in Tidemill

Faults of the machine have reasons of their own, declared here so that every service uses the same ones: `DISK_LOW`,
`DISK_FULL`, `BUS_AWAY`, `DATABASE_DAMAGED`, `SNAPSHOT_DAMAGED`, `PEER_UNAVAILABLE`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

# Of a refusal that does not know when a retry helps.
_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with a request: `field` is a path such as `spec.sources[0].uri`."""

    field: str
    description: str


class TidemillError(Exception):
    """Root of the tree; not raised itself."""

    code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    @property
    def wait_s(self) -> float | None:
        """Seconds that a caller should wait before it retries, or None; every refusal that is temporary has them."""
        if self.retry_after_s is None and isinstance(self, UnavailableError | ResourceExhaustedError):
            return _WAIT_S
        return self.retry_after_s


class InvalidArgumentError(TidemillError):
    """The request itself is wrong, whatever the state of the system."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"


class FailedPreconditionError(TidemillError):
    """The request is valid, but not in the current state."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class NotFoundError(TidemillError):
    """The named resource does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExistsError(TidemillError):
    """The resource exists with other content."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class AbortedError(TidemillError):
    """A concurrent change won."""

    code = "ABORTED"
    default_reason = "ABORTED"


class UnauthenticatedError(TidemillError):
    """No valid credential was given."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(TidemillError):
    """The credential does not allow this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class ResourceExhaustedError(TidemillError):
    """A limit is reached."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class DeadlineExceededError(TidemillError):
    """The caller's deadline has passed."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class UnavailableError(TidemillError):
    """A dependency does not respond at the moment."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class DataLossError(TidemillError):
    """Stored data is damaged; a retry changes nothing."""

    code = "DATA_LOSS"
    default_reason = "DATA_LOSS"


class InternalError(TidemillError):
    """A bug in Tidemill."""

    code = "INTERNAL"
    default_reason = "INTERNAL"


def not_found(kind: str, name: str, hint: str = "") -> NotFoundError:
    """The error for a resource that does not exist.

    Args:
        kind: of the resource, as the fields that name it are called, such as `dataset_version`.
        name: the full one that was asked for, such as `datasets/news/versions/3`.
        hint: a sentence on what to do.
    """
    message = f"There is no {kind.replace('_', ' ')} {name!r}. {hint}".rstrip()
    return NotFoundError(message, reason=f"{kind.upper()}_NOT_FOUND", metadata={kind: name})


def invalid_page_token(why: str) -> InvalidArgumentError:
    """The error for an invalid page token."""
    return InvalidArgumentError(
        f"page_token {why}.", reason="INVALID_PAGE_TOKEN", violations=[FieldViolation("page_token", why)]
    )


def request_id_reused(request_id: str, kind: str, **known: str) -> InvalidArgumentError:
    """The error for a request id that was used for something else before.

    Args:
        request_id: the caller's request id.
        kind: what it was used for, such as `run`.
        known: further metadata, such as the name of that resource.
    """
    return InvalidArgumentError(
        f"request_id {request_id!r} was already used for another {kind}. Use a new request_id for every {kind}.",
        reason="REQUEST_ID_REUSED",
        metadata={"request_id": request_id, **known},
    )


def bus_away(what: str, cause: object = "") -> UnavailableError:
    """The error for a bus that is unavailable.

    Args:
        what: one sentence without its full stop, such as `No Kafka broker answers at 127.0.0.1:9092`.
        cause: what the client said.
    """
    said = f" ({cause})" if cause else ""
    return UnavailableError(
        f"{what}{said}. Retry later. `tidemill status` shows whether Kafka runs; its log says why not.",
        reason="BUS_AWAY",
        retry_after_s=2,
    )


def disk_full(where: str = "") -> ResourceExhaustedError:
    """The error for a full disk.

    Args:
        where: the file or service concerned, if known.
    """
    named = f" while writing {where}" if where else ""
    return ResourceExhaustedError(
        f"The disk is full{named}. Free some space, then retry. `tidemill status` shows how much is free.",
        reason="DISK_FULL",
        metadata={"path": where} if where else {},
        retry_after_s=30,
    )


def database_damaged(database: str, cause: object) -> DataLossError:
    """The error for a database whose file is damaged.

    Args:
        database: its URL or path.
        cause: what the driver said.
    """
    return DataLossError(
        f"The database {database} is damaged ({cause}). Stop the mesh, then restore the file from a backup or see"
        " what `tidemill doctor` can save.",
        reason="DATABASE_DAMAGED",
        metadata={"database": database},
    )


def snapshot_damaged(uri: str, part: str, cause: object) -> DataLossError:
    """The error for a data-set version whose files are damaged.

    Args:
        uri: of its folder.
        part: the file's name.
        cause: what is wrong with it, without a full stop.
    """
    return DataLossError(
        f"The snapshot {uri} is damaged: {part}: {cause}. Restore the file from a backup, or remove the snapshot's "
        "folder and build the data set again.",
        reason="SNAPSHOT_DAMAGED",
        metadata={"uri": uri, "part": part, "cause": str(cause)},
    )


def peer_away(peer: str, cause: str, retry_after_s: float = 1.0) -> UnavailableError:
    """The error for a service that does not answer.

    Args:
        peer: its name.
        cause: what gRPC said.
        retry_after_s: when to come again.
    """
    return UnavailableError(
        f"The {peer} service does not answer: {cause.rstrip('.')}. Retry later. `tidemill status` shows its state, and "
        "why it ended.",
        reason="PEER_UNAVAILABLE",
        metadata={"peer": peer},
        retry_after_s=retry_after_s,
    )


def explained(error: BaseException) -> TidemillError | None:
    """The known fault among an error and its causes; None if there is none, which means a bug of ours."""
    if isinstance(error, TidemillError):
        return error
    for each in _causes(error):
        if isinstance(each, DataLossError):
            return each
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return disk_full(str(each.filename or ""))
        # Native libraries, such as the writers of weights, only say it in the message.
        if "No space left on device" in str(each):
            return disk_full()
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and the chain of its causes."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def as_plain(error: Exception) -> dict[str, Any]:
    """An error as JSON-like values, for another process; one that is not known is a bug of ours."""
    known = explained(error) or InternalError(f"{type(error).__name__}: {error}")
    return {
        "code": known.code,
        "reason": known.reason,
        "message": known.message,
        "metadata": known.metadata,
        "violations": [[each.field, each.description] for each in known.violations],
    }


def from_plain(value: Mapping[str, Any]) -> TidemillError:
    """The error that `as_plain` wrote."""
    kinds = {kind.code: kind for kind in TidemillError.__subclasses__()}
    violations = [FieldViolation(*each) for each in value["violations"]]
    kind = kinds.get(value["code"], InternalError)
    return kind(value["message"], reason=value["reason"], metadata=value["metadata"], violations=violations)


def is_retryable(error: BaseException) -> bool:
    """Whether a later retry can succeed without anyone changing anything."""
    return isinstance(error, UnavailableError | ResourceExhaustedError | DeadlineExceededError | AbortedError)
