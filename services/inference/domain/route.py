"""A model's route as inference keeps it: which versions are in it, with what role, weight and users.

The weights are shares of a hash range of `SLOTS`. Which slots a version has is stored, not computed from the weights
each time: a change of weights then moves only as many slots, and so users, as the shares themselves differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.serving.domain.cascade import Cascade
from services.serving.domain.names import CHAMPION
from services.serving.domain.route import SLOTS, Ranges, Role

USUAL_WEIGHT = 100
"""Of a version that is published into a route without one."""
MAX_ENTRIES = 8
"""As the contract says: all of them are in memory at once."""


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A version in a route."""

    number: int
    role: Role = Role.SERVING
    weight: int = 0
    users: Ranges = ()


@dataclass(frozen=True, slots=True)
class Cause:
    """Who changed a route, by which call, and why."""

    method: str = ""
    """The RPC; empty where the service did so itself."""
    api_key: str = ""
    """Of the caller; empty for a call from inside the mesh."""
    reason: str = ""


UNKNOWN = Cause()


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """All versions of a model that are to be loaded. One without entries is that of a model that answers nothing."""

    model: str
    revision: int = 0
    """Counts the changes of the route; 0 before the first one."""
    entries: tuple[RouteEntry, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    update_time: datetime | None = None
    cause: Cause = UNKNOWN
    """Of the change that made it."""
    cascade: Cascade | None = None
    """The larger model that is asked when this one is not sure; changes of versions leave it."""

    @property
    def etag(self) -> str:
        """Names this state of the route."""
        return str(self.revision)

    @property
    def numbers(self) -> frozenset[int]:
        """The versions in it."""
        return frozenset(entry.number for entry in self.entries)

    @property
    def serving(self) -> RouteEntry | None:
        """The entry whose role is serving."""
        return next((entry for entry in self.entries if entry.role is Role.SERVING), None)

    def entry(self, number: int) -> RouteEntry | None:
        """The entry of a version."""
        return next((entry for entry in self.entries if entry.number == number), None)

    def having(self, entries: Iterable[RouteEntry], aliases: Mapping[str, int] | None = None) -> ModelRoute:
        """The route with these entries, and their slots by weight; aliases of other versions go."""
        given = tuple(entries)
        numbers = {entry.number for entry in given}
        kept = self.aliases if aliases is None else aliases
        slots = _allotted({e.number: e.weight for e in given if e.role.shares}, {e.number: e.users for e in given})
        return replace(
            self,
            entries=tuple(replace(entry, users=slots.get(entry.number, ())) for entry in given),
            aliases={name: number for name, number in sorted(kept.items()) if number in numbers},
        )

    def served_by(self, number: int) -> ModelRoute:
        """The route in which a version has taken the place of the one that serves.

        The version before goes, with its users to the new one. If an alias names it, it stays as a candidate.
        """
        before = self.serving
        if before is not None and before.number == number:
            return self
        old = self.entry(number)
        # A canary that is promoted keeps its own share, too: the others' users stay where they are.
        weight = (before.weight if before is not None else 0) + (old.weight if old is not None else 0)
        users = _merged([*(before.users if before is not None else ()), *(old.users if old is not None else ())])
        entries = [RouteEntry(number, Role.SERVING, weight or USUAL_WEIGHT, users)]
        entries += [entry for entry in self.entries if entry.number != number and entry.role is not Role.SERVING]
        if before is not None and before.number in self.aliases.values():
            entries.append(RouteEntry(before.number, Role.CANDIDATE))
        return self.having(entries)

    def joined_by(self, number: int, role: Role, weight: int) -> ModelRoute:
        """The route with a further version, or with another role of one that is in it."""
        if role is Role.SERVING:
            return self.served_by(number)
        old = self.entry(number)
        others = [entry for entry in self.entries if entry.number != number]
        return self.having([*others, RouteEntry(number, role, weight, old.users if old else ())])

    def without(self, number: int) -> ModelRoute:
        """The route without a version; the users of a canary go to the others."""
        return self.having(entry for entry in self.entries if entry.number != number)

    def set_to(self, entries: Sequence[RouteEntry], aliases: Mapping[str, int]) -> ModelRoute:
        """The route with these versions in place of its own; users keep their version where they can.

        Raises:
            InvalidArgumentError: they are not a valid route; names each field that is wrong.
        """
        _check(entries, aliases)
        known = {entry.number: entry.users for entry in self.entries}
        given = [replace(entry, users=known.get(entry.number, ())) for entry in entries]
        return self.having(given, aliases)


def _check(entries: Sequence[RouteEntry], aliases: Mapping[str, int]) -> None:
    wrong: list[FieldViolation] = []
    seen: set[int] = set()
    serving = [at for at, entry in enumerate(entries) if entry.role is Role.SERVING]
    for at, entry in enumerate(entries):
        if entry.number in seen:
            wrong.append(FieldViolation(f"entries[{at}].version", f"version {entry.number} is in the route twice"))
        seen.add(entry.number)
        if entry.role.shares and entry.weight < 1:
            why = f"a {entry.role} version needs a weight of at least 1; one that gets no calls is a candidate"
            wrong.append(FieldViolation(f"entries[{at}].weight", why))
        if not entry.role.shares and entry.weight:
            why = f"a {entry.role} has no share of the calls, so its weight must be 0"
            wrong.append(FieldViolation(f"entries[{at}].weight", why))
    for at in serving[1:]:
        why = f"only one version can be serving, and version {entries[serving[0]].number} is"
        wrong.append(FieldViolation(f"entries[{at}].role", why))
    if not serving:
        wrong.append(FieldViolation("entries", "one version must have the role serving"))
    for name, number in sorted(aliases.items()):
        if name == CHAMPION:
            wrong.append(FieldViolation(f"aliases[{name}]", "champion is always the serving version"))
        elif number not in seen:
            wrong.append(FieldViolation(f"aliases[{name}]", f"version {number} is not among the entries"))
    if wrong:
        text = "; ".join(f"{each.field}: {each.description}" for each in wrong)
        raise InvalidArgumentError(f"The route is not valid: {text}.", reason="INVALID_ROUTE", violations=wrong)


def _allotted(weights: Mapping[int, int], before: Mapping[int, Ranges]) -> Mapping[int, Ranges]:
    """Slots for each version by its weight: each keeps what it has as far as its share allows.

    Only what someone has too much of, or no one has, changes hands; that is the least that can.
    """
    if not weights:
        return {}
    shares = _shares(weights)
    kept = {number: _first(before.get(number, ()), share) for number, share in shares.items()}
    free = _gaps(kept.values())
    found: dict[int, Ranges] = {}
    for number, share in shares.items():
        taken, free = _split(free, share - _size(kept[number]))
        found[number] = _merged([*kept[number], *taken])
    return found


def _shares(weights: Mapping[int, int]) -> Mapping[int, int]:
    """`SLOTS` divided by weight, by largest remainder."""
    total = sum(weights.values())
    shares = {number: weight * SLOTS // total for number, weight in weights.items()}
    left = SLOTS - sum(shares.values())
    for number in sorted(weights, key=lambda each: (-(weights[each] * SLOTS % total), each))[:left]:
        shares[number] += 1
    return shares


def _size(ranges: Ranges) -> int:
    return sum(end - begin for begin, end in ranges)


def _first(ranges: Ranges, count: int) -> Ranges:
    return _split(ranges, count)[0]


def _split(ranges: Ranges, count: int) -> tuple[Ranges, Ranges]:
    """The first `count` slots, and the rest."""
    taken: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for begin, end in ranges:
        size = max(0, min(end - begin, count))
        count -= size
        if size:
            taken.append((begin, begin + size))
        if begin + size < end:
            rest.append((begin + size, end))
    return tuple(taken), tuple(rest)


def _gaps(taken: Iterable[Ranges]) -> Ranges:
    """The slots that no one has."""
    found: list[tuple[int, int]] = []
    at = 0
    for begin, end in sorted(each for ranges in taken for each in ranges):
        if at < begin:
            found.append((at, begin))
        at = max(at, end)
    if at < SLOTS:
        found.append((at, SLOTS))
    return tuple(found)


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, with neighbours as one."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return tuple(found)
