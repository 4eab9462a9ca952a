"""Statistics that stay true however often one looks: whether a candidate is better, worse, or fed a wrong share.

A usual test may be looked at once, at a sample size that was fixed before. Looked at after every answer, it finds a
difference between two equal models sooner or later. The bounds here keep the chance of *ever* being wrong below
`alpha`, so the mesh may stop an experiment at any answer. `make bench-sequential` shows false promotions and power.

A unit is what was assigned to an arm, so a user and not an answer: answers of one user resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MIN_UNITS = 200
"""Units in each arm before a difference of means is believed: the bound is asymptotic (see `MeanDifference`)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Count, mean and sum of squared deviations of an arm's values, one value a unit; add up with `+`."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> Sample:
        """With one more value."""
        return self + Sample(1, value)

    def __add__(self, other: Sample) -> Sample:
        """Both together, by Chan's update (1979), which loses no digits to a large mean."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Sample(
            count,
            self.mean + apart * other.count / count,
            self.squares + other.squares + apart * apart * self.count * other.count / count,
        )

    @property
    def variance(self) -> float:
        """Of one value, unbiased; 0 for fewer than two."""
        return self.squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """Candidate's mean less the champion's, of a binary, count or continuous metric, at any time.

    An asymptotic confidence sequence: Robbins' normal mixture around the difference of means. It covers the true
    difference at all times at once with probability 1 - alpha, as far as means of `MIN_UNITS` are normal; below that
    it is infinitely wide.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
    confidence sequences", Annals of Statistics 52 (2024), theorem 2.2 and its one-sided form, proposition B.1.
    """

    champion: Sample
    candidate: Sample
    tightest_at: float = 2000.0
    """Units in both arms together at which the interval is narrowest in its kind: where a decision is expected."""

    @property
    def estimate(self) -> float:
        """The difference as it looks now."""
        return self.candidate.mean - self.champion.mean

    def interval(self, alpha: float) -> tuple[float, float]:
        """Contains the true difference at every look, but for a share `alpha` of all experiments."""
        half = self._half(alpha, one_sided=False)
        return self.estimate - half, self.estimate + half

    def lower(self, alpha: float) -> float:
        """The true difference is never below this, but for a share `alpha` of all experiments."""
        return self.estimate - self._half(alpha, one_sided=True)

    def upper(self, alpha: float) -> float:
        """The true difference is never above this, but for a share `alpha` of all experiments."""
        return self.estimate + self._half(alpha, one_sided=True)

    def z(self, margin: float = 0.0) -> float:
        """How many standard errors the difference is above -margin: for a test that is looked at at planned times only.

        Infinite if it is above and no value varies; 0 before both arms have a value.
        """
        if not min(self.champion.count, self.candidate.count):
            return 0.0
        above, error = self.estimate + margin, self.error()
        return above / error if error else math.inf if above > 0 else 0.0

    def error(self) -> float:
        """Standard error of the difference."""
        return math.sqrt(self.champion.variance / self.champion.count + self.candidate.variance / self.candidate.count)

    def _half(self, alpha: float, *, one_sided: bool) -> float:
        if min(self.champion.count, self.candidate.count) < MIN_UNITS:
            return math.inf
        return self.error() * normal_mixture(
            self.champion.count + self.candidate.count, alpha, self.tightest_at, one_sided
        )


def normal_mixture(units: float, alpha: float, tightest_at: float, one_sided: bool) -> float:
    """Half the width of a confidence sequence in standard errors; 1.96 would be that of a single look."""
    # Proposition A.1 there: the mixture's variance that makes the interval narrowest at `tightest_at`.
    level = -2 * math.log(2 * alpha if one_sided else alpha)
    information = units * (level + math.log(level + 1)) / tightest_at
    grown = math.sqrt(information + 1)
    beyond = math.log(1 + grown / (2 * alpha)) if one_sided else math.log(grown / alpha)
    return math.sqrt(2 * (information + 1) / information * beyond)


class RateGuard:
    """Whether a rate is above its limit: errors, refusals, or answers slower than a time that only 1 % may exceed.

    The evidence is an e-process: while the rate is within its limit, the chance that it ever reaches 1 / alpha is at
    most alpha. A mixture of likelihood ratios over rates above the limit, so that a large excess shows within a few
    answers and a small one in the end.
    Source: Howard and Ramdas, "Sequential estimation of quantiles", Bernoulli 28 (2022), for the use on quantiles;
    Wald's and Robbins' mixture for the rest.
    """

    def __init__(self, limit: float) -> None:
        """Args:
        limit: the highest rate that is allowed, between 0 and 1.

        Raises:
            ValueError: it is not between 0 and 1.
        """
        if not 0 < limit < 1:
            raise ValueError(f"a limit must be between 0 and 1, not {limit}")
        # From just above the limit to nearly all, evenly in log-odds.
        odds = math.log(limit / (1 - limit))
        steps = [odds + 0.1 * 1.35**step for step in range(16)]
        rates = [1 / (1 + math.exp(-each)) for each in steps]
        self._of_hit = [math.log(each / limit) for each in rates]
        self._of_miss = [math.log((1 - each) / (1 - limit)) for each in rates]

    def log_evidence(self, hits: int, count: int) -> float:
        """Natural logarithm of the evidence that the rate is above its limit, from `hits` of `count`."""
        terms = [hits * hit + (count - hits) * miss for hit, miss in zip(self._of_hit, self._of_miss, strict=True)]
        most = max(terms)
        return most + math.log(sum(math.exp(each - most) for each in terms) / len(terms))

    def is_exceeded(self, hits: int, count: int, alpha: float) -> bool:
        """Whether the rate is above its limit; wrong in a share `alpha` of all experiments, however often asked."""
        return self.log_evidence(hits, count) >= -math.log(alpha)


def ratio_mismatch(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Probability-like bound that arms were fed as planned: below `alpha`, something in the assignment is wrong.

    An always-valid p-value: the marginal likelihood of a Dirichlet mixture around the plan against the plan.
    Source: Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022.

    Args:
        counts: units seen, by arm.
        shares: planned shares by arm; they sum to 1.

    Returns:
        The bound at this look. Keep the least of all looks.

    Raises:
        ValueError: the arms differ, or a share is not positive.
    """
    if counts.keys() != shares.keys() or any(share <= 0 for share in shares.values()):
        raise ValueError(f"counts of {sorted(counts)} do not fit shares of {sorted(shares)}, each above 0")
    total = sum(counts.values())
    weight = 100.0  # of the mixture: about how many units a mismatch of a few percent needs to be of interest
    log_evidence = math.lgamma(weight) - math.lgamma(weight + total)
    for arm, count in counts.items():
        share = shares[arm]
        log_evidence += math.lgamma(weight * share + count) - math.lgamma(weight * share) - count * math.log(share)
    return math.exp(min(0.0, -log_evidence))
