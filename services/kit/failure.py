"""Why a long-running operation failed: what its store keeps, its RPCs return and its events carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.kit.errors import explained

_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason (UPPER_SNAKE, as in google.rpc.ErrorInfo), a sentence for a person, and facts by name."""

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: Exception, what: str) -> Failure:
        """The failure for an error.

        Args:
            error: what was raised. A known fault among its causes, such as a full disk, gives the reason; otherwise it
                is `UNEXPECTED`, a bug of ours.
            what: what failed, at the beginning of a sentence, such as "The build".
        """
        known = explained(error)
        if known is not None:
            return cls(known.reason, known.message, known.metadata)
        message = f"{what} failed ({type(error).__name__}: {error}); the log of the service has the details."
        return cls("UNEXPECTED", message[:_LONGEST])
