"""`tidemill tune`: searches the hyper-parameters that a pipeline file names; its trials are runs of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion

from gateway.cli.connection import Connection, connect
from gateway.cli.dataset_commands import find_version
from gateway.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    AddressOption,
    JsonOption,
    plain_table,
    print_json,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.search_space import SearchSpace, Values, search_space, shown, word
from gateway.cli.search_trials import Budget, Trial, best_of, indistinct, search
from gateway.cli.trial_runs import TrialRuns
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

_TRIALS = 20


def tune(
    file: Annotated[Path, typer.Argument(help="A pipeline file with `search`.", show_default=False)],
    dataset: Annotated[
        str, typer.Option(help="Version to learn from; the newest of the file's data set.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file for the best `training`.", show_default=False)
    ] = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Searches the hyper-parameters that a file names in `search`, and shows the best.

    Each trial is a run that is measured on training records that it does not learn; the hold-out is not used. Started
    again with the same file it continues.
    """
    from gateway.cli.pipeline_file import load_pipeline

    loaded = load_pipeline(file)
    space, wanted, console = search_space(loaded), loaded.spec.search, stderr()
    budget = Budget(
        wanted.trials if wanted.HasField("trials") else _TRIALS,
        wanted.max_minutes * 60 if wanted.HasField("max_minutes") else None,
    )
    trials: list[Trial] = []
    with connect(address) as connection:
        version = _version(connection, dataset or loaded.spec.dataset.name, file)
        runs = TrialRuns(connection, loaded, space, version, console)
        console.print(f"{loaded.spec.name}: up to {budget.trials} trials on {version.name}", soft_wrap=True)
        try:
            for trial in search(space, budget, wanted.seed, runs.make):
                trials.append(trial)
                console.print(f"  {len(trials)}: {shown(trial.values)}: {result(trial)}", soft_wrap=True)
        except KeyboardInterrupt:
            console.print("\nYou stopped the search; its last run continues. Start it again with the same command.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    best = best_of(trials)
    training = None if best is None else tuned_training(file, best.values)
    if json_wanted:
        print_json(_as_json(loaded.spec.name, version.name, trials, best, training))
    else:
        over = budget.seconds is not None and sum(each.seconds for each in trials) >= budget.seconds
        _show(space, trials, best, training, over=over)
    if training is None:
        raise typer.Exit(EXIT_FAILED)
    if out is not None:
        try:
            out.write_text(_yaml(training), encoding="utf-8")
        except OSError as error:
            raise InvalidArgumentError(f"{out} cannot be written: {error.strerror}.") from error


def _version(connection: Connection, name: str, file: Path) -> DatasetVersion:
    """The data-set version to learn from."""
    hint = f"build it with `tidemill dataset build {file}` or `tidemill run {file}`, or choose one by --dataset"
    try:
        with connection.errors():
            version = find_version(connection, name)
    except NotFoundError as error:
        raise NotFoundError(f"There is no version of {name} yet; {hint}.", reason=error.reason) from error
    if version.state != DatasetVersion.STATE_READY:
        raise FailedPreconditionError(f"{version.name} is not ready; {hint}.", reason="DATASET_NOT_READY")
    return version


def tuned_training(file: Path, values: Values) -> dict[str, Any]:
    """The `training` of a pipeline file, as it is written there, with other values."""
    training: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["training"]
    for name, value in values.items():
        *way, last = name.split(".")
        place = training
        for part in way:
            place[part] = dict(place.get(part) or {})
            place = place[part]
        place[last] = value
    return training


def table_of(space: SearchSpace, trials: Sequence[Trial], best: Trial | None) -> Table:
    """A row for each trial."""
    table = plain_table()
    measured = next((each.measured for each in trials if each.measured is not None), None)
    table.add_column("trial", justify="right")
    for each in space.ranges:
        table.add_column(each.name, justify="right")
    for name in (measured.name if measured else "value", "95 % interval", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("run")
    for number, trial in enumerate(trials, 1):
        found = trial.measured
        table.add_row(
            f"{number} best" if trial is best else str(number),
            *(word(trial.values[each.name]) for each in space.ranges),
            f"{found.value:.4f}" if found else "",
            f"{found.ci_low:.4f} to {found.ci_high:.4f}" if found else "",
            f"{trial.seconds:,.0f}",
            trial.run if found else f"{trial.run} {trial.why}".strip(),
        )
    return table


def result(trial: Trial) -> str:
    """What a trial found, in words."""
    found = trial.measured
    if found is None:
        return f"no value: {trial.why}"
    return f"{found.name} {found.value:.4f} [{found.ci_low:.4f}, {found.ci_high:.4f}], {trial.seconds:,.0f} s"


def _show(
    space: SearchSpace, trials: list[Trial], best: Trial | None, training: dict[str, Any] | None, *, over: bool
) -> None:
    out = stdout()
    print_whole(table_of(space, trials, best))
    if over:
        out.print(
            "The time of the search is over; with more max_minutes the same command continues it.", soft_wrap=True
        )
    if best is None or training is None:
        out.print("No trial succeeded.")
        return
    found = best.measured
    assert found is not None
    out.print(
        f"\nBest: {shown(best.values)}, by {found.name} on {found.sample_size:,} training records that the trials did "
        "not learn. The hold-out was not used: `tidemill run` measures the values there.",
        soft_wrap=True,
    )
    if others := indistinct(trials, best):
        are = "other trial is" if others == 1 else "other trials are"
        out.print(f"{others} {are} within its interval, so the order of these may be chance.", soft_wrap=True)
    out.print(f"\nFor the pipeline file:\n\n{_yaml(training)}", soft_wrap=True, end="")


def _as_json(
    study: str, dataset: str, trials: Sequence[Trial], best: Trial | None, training: dict[str, Any] | None
) -> dict[str, Any]:
    def one(trial: Trial) -> dict[str, Any]:
        found = trial.measured
        value = None if found is None else asdict(found)
        why = {"why": trial.why} if trial.why else {}
        return {"values": dict(trial.values), "measured": value, "seconds": trial.seconds, "run": trial.run, **why}

    return {
        "study": study,
        "dataset": dataset,
        "trials": [one(each) for each in trials],
        "best": None if best is None else one(best),
        "training": training,
    }


def _yaml(training: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(
        {"training": training}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )
    return text
