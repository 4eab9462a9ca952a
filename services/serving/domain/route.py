"""Which versions answer for a model: what the control plane decides, and the data plane keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.serving.domain.answer import Task
from services.serving.domain.cascade import Cascade
from services.serving.domain.names import CHAMPION, server_model, version_name

SLOTS = 10_000
"""Size of the hash range of users; a version's share of it is its share of the calls."""


class Role(StrEnum):
    """What a version does in a route."""

    SERVING = "serving"
    """Answers its share of the calls; a route has one."""
    CANARY = "canary"
    """Answers its share of the calls."""
    SHADOW = "shadow"
    """Gets a copy of the calls; never answers a caller who did not name it."""
    CANDIDATE = "candidate"
    """Answers the calls that name it."""

    @property
    def shares(self) -> bool:
        """Whether calls that name no version are divided among versions of this role."""
        return self in (Role.SERVING, Role.CANARY)


Ranges = tuple[tuple[int, int], ...]
"""Slots of the hash range: half-open, ascending, apart from each other."""


def slot_of(model: str, user: str) -> int:
    """The user's slot: the same in every process and after every restart.

    The model is hashed too, so that it is not the same users who meet the canary of every model.
    """
    digest = hashlib.blake2b(f"{model}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % SLOTS


@dataclass(frozen=True, slots=True)
class RoutedVersion:
    """A version that is loaded."""

    model: str
    number: int
    task: Task
    precision: str = ""
    labels: tuple[str, ...] = ()
    """Of a classifier, in the order of its scores."""
    prompt_template: str = ""
    role: Role = Role.SERVING
    weight: int = 0
    users: Ranges = ()
    """The slots whose users it answers."""
    generation: int = 0
    """Counts its loads. A report that its process died names the generation it was seen in."""
    embedding_size: int = 0
    """Width of its embeddings; 0 if it gives none."""
    digest: str = ""
    """Of its build's files; empty in a route of an earlier release."""
    load_s: float = 0.0
    """How long its last load took; 0 if that is not known."""

    @property
    def name(self) -> str:
        """Resource name."""
        return version_name(self.model, self.number)

    @property
    def server_model(self) -> str:
        """Its name in Triton."""
        return server_model(self.model, self.number)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Why a model is out of service although it is published."""

    message: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """A model's versions that are loaded, and who gets which of them."""

    model: str
    create_time: datetime
    versions: tuple[RoutedVersion, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    """Further names of versions; `champion` is not among them."""
    withdrawn: Withdrawal | None = None
    etag: str = ""
    update_time: datetime | None = None
    cascade: Cascade | None = None
    """Of a classifier: the larger model that is asked when it is not sure."""

    @property
    def serving(self) -> RoutedVersion | None:
        """The version whose role is serving, if one is."""
        return next((version for version in self.versions if version.role is Role.SERVING), None)

    def version(self, number: int) -> RoutedVersion | None:
        """The version of this number, if it is loaded."""
        return next((version for version in self.versions if version.number == number), None)

    def named(self, name: str) -> RoutedVersion | None:
        """The version of this number or alias, if it is loaded."""
        if name == CHAMPION:
            return self.serving
        number = int(name) if name.isascii() and name.isdecimal() else self.aliases.get(name)
        return None if number is None else self.version(number)

    def at(self, slot: int) -> RoutedVersion | None:
        """The version that answers the users of a slot."""
        for version in self.versions:
            for begin, end in version.users:
                if begin <= slot < end:
                    return version
        return self.serving

    @property
    def shadows(self) -> tuple[RoutedVersion, ...]:
        """The versions that get copies."""
        return tuple(version for version in self.versions if version.role is Role.SHADOW)
