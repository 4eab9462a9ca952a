"""Advice on recipe and build: gathers base models, the device and what runs have measured, for the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError, TidemillError
from services.training.app.ports import BaseModels, MachineView, MeasuredDevice, RunStore
from services.training.domain.advice import Wishes
from services.training.domain.device import DEVICES, Device
from services.training.domain.report import Report
from services.training.domain.tasks import VariantName
from services.training.engine.advising import Advice, MeasuredLoss, advise
from services.training.engine.model_shape import Shape

_RUNS = 200


class Advising:
    """Use case. Thread-safe."""

    def __init__(self, models: BaseModels, store: RunStore, machine: MachineView, here: MeasuredDevice) -> None:
        self._models, self._store, self._machine, self._here = models, store, machine, here

    def advise(self, wishes: Wishes) -> Advice:
        """See `services.training.engine.advising`. Loads no weights and stores no run.

        Raises:
            NotFoundError, PermissionDeniedError: a base model does not exist or may not be read.
            InvalidArgumentError: one is of the wrong kind, or cannot be planned.
            UnavailableError: this machine could not be measured.
        """
        bases = self._bases(wishes)
        return advise(wishes, self._device(wishes), bases, self._machine.look(), self._measured(wishes.task))

    def _device(self, wishes: Wishes) -> Device:
        return DEVICES[wishes.device] if wishes.device in DEVICES else self._here.device(wishes.architecture)

    def _bases(self, wishes: Wishes) -> Mapping[str, Mapping[str, Any]]:
        """Configurations of the named base models, or of all known ones that can learn the task."""
        wants_encoder = wishes.architecture == "encoder"
        if not wishes.base_models:
            known = {name: self._models.config(name) for name in self._models.names()}
            return {name: config for name, config in known.items() if Shape.of_config(config).encoder == wants_encoder}
        found = {}
        for number, name in enumerate(wishes.base_models):
            field = f"base_models[{number}]"
            try:
                config = self._models.config(name)
                is_encoder = Shape.of_config(config).encoder
            except TidemillError as error:
                raise _renamed(error, field) from error
            if is_encoder != wants_encoder:
                kind, needed = ("an encoder", "a causal model") if is_encoder else ("a causal model", "an encoder")
                raise _refused(field, f"{name} is {kind}; {wishes.task} needs {needed}")
            limit, wanted = config.get("max_position_embeddings"), wishes.max_input_tokens
            wanted += 0 if wants_encoder else wishes.max_target_tokens
            if limit and wanted > limit:
                raise _refused("max_input_tokens", f"{wanted} tokens exceed the {limit} tokens that {name} can read")
            found[name] = config
        return found

    def _measured(self, task: str) -> MeasuredLoss:
        """The losses of quality of the newest runs of the task."""
        found: dict[tuple[str, VariantName], list[float]] = defaultdict(list)
        for run in self._store.page("", _RUNS):
            if run.report is not None and run.spec.task.kind == task:
                for build, loss in losses_of(run.report).items():
                    found[run.spec.base_model, build].append(loss)
        return found


def losses_of(report: Report) -> Mapping[VariantName, float]:
    """The relative loss of quality of each build, as the gate counts it; negative where a build gained."""
    found: dict[VariantName, float] = {}
    for variant in report.variants:
        if variant.loss_increase is not None:
            found[variant.precision] = variant.loss_increase.value  # type: ignore[index]
        elif report.tuned.value:
            lost = (report.tuned.value - variant.quality.value) / abs(report.tuned.value)
            found[variant.precision] = lost  # type: ignore[index]
    return found


def _refused(field: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {why}.", reason="INVALID_WISHES", violations=[FieldViolation(field, why)])


def _renamed(error: TidemillError, field: str) -> TidemillError:
    """The error about a spec's base model, about the field that names it here."""
    why = [each.description for each in error.violations] or [error.message]
    return type(error)(
        f"{field}: {'; '.join(why)}.",
        reason=error.reason,
        metadata=error.metadata,
        violations=[FieldViolation(field, each) for each in why],
    )
