"""Brings inference's route to what a roll-out's state asks for, and sees whether someone else has changed it."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.errors import NotFoundError
from services.kit.retrying import again_if_aborted
from services.pipeline.app.rollout_ports import ModelRoutes, RoutedRole, Routing
from services.pipeline.domain.rollout import Rollout, RolloutState
from services.pipeline.domain.rollout_plan import StepKind

_TOTAL = 10_000


async def set_for(rollout: Rollout, routing: Routing) -> str:
    """Sets the route of a roll-out's current step, unless it is set already.

    Returns:
        Its etag; empty for a roll-back of a model that is not published any more.

    Raises:
        TidemillError: inference does not answer, or refuses it: a version was deleted, or cannot be loaded.
    """
    candidate = number_of(rollout.candidate)

    async def attempt() -> str:
        found = await routing.route(rollout.model)
        if rollout.state is RolloutState.PROMOTED:
            if found.serving == candidate:
                return found.etag
            return await routing.promote(rollout.model, candidate, rollout.reason)
        wanted = wanted_of(rollout, found)
        if wanted == dict(found.versions):
            return found.etag
        aliases = {name: number for name, number in found.aliases.items() if number in wanted}
        return await routing.set_route(rollout.model, wanted, aliases, found.etag, rollout.reason)

    try:
        return await again_if_aborted(attempt)
    except NotFoundError:
        if rollout.state is RolloutState.ROLLED_BACK:
            return ""
        raise


def wanted_of(rollout: Rollout, found: ModelRoutes) -> Mapping[int, RoutedRole]:
    """The versions of the route that a roll-out asks for; those that it does not speak of keep role and weight.

    A roll-back leaves a route alone in which the candidate serves: a person has put it there.
    """
    candidate = number_of(rollout.candidate)
    others = {number: each for number, each in found.versions.items() if number != candidate}
    if rollout.state is RolloutState.ROLLED_BACK:
        return dict(found.versions) if found.serving == candidate or not others else others
    step = rollout.planned
    if step.kind is StepKind.SHADOW:
        return {**others, candidate: RoutedRole("shadow")}
    ours = max(1, round(step.share * _TOTAL))
    sharing = {number: each.weight for number, each in others.items() if each.weight}
    total = sum(sharing.values()) or 1
    weights = {number: max(1, round((_TOTAL - ours) * weight / total)) for number, weight in sharing.items()}
    changed = {n: RoutedRole(each.role, weights[n]) if n in weights else each for n, each in others.items()}
    return {**changed, candidate: RoutedRole("canary", ours)}


def what_changed(rollout: Rollout, found: ModelRoutes) -> str:
    """What someone else did to the route since the current step began, a sentence; empty if nothing that matters."""
    candidate, champion = number_of(rollout.candidate), number_of(rollout.champion)
    if found.serving == candidate:
        return f"{rollout.candidate} was made the serving version by someone else."
    if found.serving != champion:
        now = f"version {found.serving} serves" if found.serving else "no version serves"
        return f"The route was changed by someone else: {now}, no longer {rollout.champion}."
    if candidate not in found.versions:
        return f"{rollout.candidate} left the route: it was taken out, or its files were lost."
    if dict(found.versions) != dict(wanted_of(rollout, found)):
        return "The weights of the route were changed by someone else."
    return ""


def number_of(version: str) -> int:
    """The number in a version's name."""
    return int(version.rpartition("/")[2])
