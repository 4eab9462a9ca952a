"""Which versions answer for a model: what the control plane decides, and the data plane keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.serving.domain.answer import Task


@dataclass(frozen=True, slots=True)
class RoutedVersion:
    """A version that answers, is about to, or did until a moment ago."""

    number: int
    task: Task
    precision: str = ""
    labels: tuple[str, ...] = ()
    """Of a classifier, in the order of its scores."""
    prompt_template: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Why a model is out of service although it is published."""

    message: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """A model's versions, and the one of them that answers."""

    model: str
    create_time: datetime
    versions: tuple[RoutedVersion, ...] = ()
    serving: int | None = None
    """Number of the version that answers; it is one of `versions`."""
    withdrawn: Withdrawal | None = None
    generation: int = 0
    """Counts the loads of the model. A report that its process died names the generation it was seen in."""

    @property
    def answering(self) -> RoutedVersion | None:
        """The version that answers, if one does."""
        return next((version for version in self.versions if version.number == self.serving), None)
