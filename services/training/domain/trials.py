"""A trial: a run of a search for hyper-parameters, measured on training records that it does not learn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trial:
    """The name of a run's search, and the share of the training records that it is measured on."""

    study: str
    validation_share: float
