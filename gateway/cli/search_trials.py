"""Which values of a search are tried, in which order, and until when: by Optuna.

The order follows from the seed and from what earlier trials found. So nothing is stored here: an interrupted search is
made again from its beginning, and the training service answers for each trial that it has trained already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.cli.search_space import Range, SearchSpace, Values
from services.kit.errors import FailedPreconditionError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_MAX_REPEATS = 100
"""Choices in all that were made before: where few combinations are left that look good, the search ends."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a trial measured, and its interval; `lower_is_better` for a loss."""

    name: str
    value: float
    ci_low: float
    ci_high: float
    sample_size: int
    lower_is_better: bool = False

    @property
    def score(self) -> float:
        """The value as the search compares it: higher is better."""
        return -self.value if self.lower_is_better else self.value


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that has ended; `measured` is None if it did not succeed, and `why` says then why.

    `cut` if it was ended because the time of the search is over.
    """

    values: Values
    seconds: float
    measured: Metric | None = None
    run: str = ""
    why: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """How many trials, and how many seconds all of them may take together; None for no limit."""

    trials: int
    seconds: float | None = None


Attempt = Callable[[int, Values, float | None], Trial]
"""Makes a trial, given its number from 1, its values, and how many seconds are left."""


def search(space: SearchSpace, budget: Budget, seed: int, attempt: Attempt) -> Iterator[Trial]:
    """Makes trials within the budget; each is yielded when it has ended.

    Where there are no more combinations than trials, each is tried once; else the first trial has the values of the
    file itself, if they are in the ranges.

    Raises:
        FailedPreconditionError: Optuna is not installed.
    """
    optuna = _optuna()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    distributions = {each.name: _distribution(optuna, each) for each in space.ranges}
    given = space.combinations(budget.trials)
    count = budget.trials if given is None else len(given)
    given = given if given is not None else [space.own] if space.own else []
    for values in given:
        study.enqueue_trial(dict(values))
    tried: dict[tuple[Any, ...], Trial] = {}
    spent, repeats = 0.0, 0
    while len(tried) < count and repeats < _MAX_REPEATS:
        asked = study.ask(distributions)
        chosen = {each.name: asked.params[each.name] for each in space.ranges}
        if asked.number >= len(given):
            chosen = {each.name: each.rounded(chosen[each.name]) for each in space.ranges}
        key = tuple(chosen.values())
        if key in tried:
            repeats += 1
        else:
            left = None if budget.seconds is None else budget.seconds - spent
            if left is not None and left <= 0:
                return
            tried[key] = attempt(len(tried) + 1, chosen, left)
            spent += tried[key].seconds
            yield tried[key]
        trial = tried[key]
        if trial.cut:
            return
        if trial.measured is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, trial.measured.score)


def best_of(trials: list[Trial]) -> Trial | None:
    """The trial with the best value, of equal ones the first; None if none succeeded."""
    succeeded = [(each.measured.score, each) for each in trials if each.measured is not None]
    return max(succeeded, key=lambda pair: pair[0])[1] if succeeded else None


def indistinct(trials: list[Trial], best: Trial) -> int:
    """How many other trials have a value within the interval of the best one."""
    ends = best.measured
    assert ends is not None
    return sum(
        each is not best and each.measured is not None and ends.ci_low <= each.measured.value <= ends.ci_high
        for each in trials
    )


def _distribution(optuna: Any, found: Range) -> BaseDistribution:
    made: Any = optuna.distributions
    distribution: BaseDistribution
    if found.values:
        distribution = made.CategoricalDistribution(found.values)
    elif found.whole:
        distribution = made.IntDistribution(int(found.low), int(found.high), log=found.log)
    else:
        distribution = made.FloatDistribution(found.low, found.high, log=found.log)
    return distribution


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"Optuna is not installed ({error}). Install tidemill[tune].", reason="OPTUNA_MISSING"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
