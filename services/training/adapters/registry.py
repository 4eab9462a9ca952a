"""MLflow: parameters and metrics of succeeded runs, model versions with the aliases challenger and champion.

Trials are runs of the same experiment with the tag `tidemill.study`, and no version of the model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from services.kit.errors import UnavailableError
from services.training.domain.run import Run
from services.training.domain.training_spec import TrainingSpec

logger = logging.getLogger(__name__)
_RUN_TAG, _STUDY_TAG = "tidemill.run", "tidemill.study"
_MAX_PARAMETER = 500
"""Characters that every MLflow server since 1.0 accepts."""


class MlflowRegistry:
    """Implements `services.training.app.ports.Registry`."""

    def __init__(self, tracking_uri: str, artifacts_uri: str) -> None:
        self._uri, self._artifacts = tracking_uri, artifacts_uri
        self._opened: Any = None
        self._opening = threading.Lock()

    def prepare(self) -> None:
        """See the port. MLflow's import and a new database take 6 s on 2 cores."""
        threading.Thread(target=self._try_to_open, name="mlflow", daemon=True).start()

    def _try_to_open(self) -> None:
        try:
            # The first query creates the database if missing.
            self._client.search_registered_models(max_results=1)
        except Exception as error:
            # Registering a model will report the error; this call only saves time.
            logger.info("MLflow cannot be opened yet: %s", error)

    def register(self, run: Run) -> str:
        """See the port."""
        with _translated(f"register {run.name}"):
            return self._register(run)

    def promote(self, model_version: str) -> None:
        """See the port."""
        name, _, number = model_version.partition("/")
        with _translated(f"promote {model_version}"):
            client = self._client
            client.set_registered_model_alias(name, "champion", number)
            # The champion is no longer a challenger, unless a newer model has become the challenger.
            aliases = client.get_registered_model(name).aliases
            if str(aliases.get("challenger")) == number:
                client.delete_registered_model_alias(name, "challenger")

    @property
    def _client(self) -> Any:
        with self._opening:
            if self._opened is None:
                from mlflow.tracking import MlflowClient

                self._opened = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            return self._opened

    def _register(self, run: Run) -> str:
        client, name = self._client, run.spec.model_name
        if run.spec.trial is not None:
            self._track(run)
            return ""
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        for version in client.search_model_versions(f"name = '{name}'"):
            # It was registered before a crash.
            if version.tags.get(_RUN_TAG) == run.name:
                return self._challenger(name, version.version)
        tracked = self._track(run)
        made = client.create_model_version(name, source=run.uri, run_id=tracked, tags={_RUN_TAG: run.name})
        return self._challenger(name, made.version)

    def _track(self, run: Run) -> str:
        """Logs parameters and metrics of a run, once; returns MLflow's id of it."""
        from mlflow.entities import Metric, Param

        client, name = self._client, run.spec.model_name
        experiment = client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(name, artifact_location=f"{self._artifacts}/{name}")
        )
        # It may have been logged before a crash.
        known = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{run.name}'", max_results=1)
        tags = {_RUN_TAG: run.name, **({_STUDY_TAG: run.spec.trial.study} if run.spec.trial else {})}
        made = known[0] if known else client.create_run(experiment_id, run_name=run.name, tags=tags)
        tracked: str = made.info.run_id
        # One request for all fifty values: each separate request would be a transaction.
        now = int(time.time() * 1000)
        client.log_batch(
            tracked,
            metrics=[Metric(key, figure, now, 0) for key, figure in _figures(run).items()],
            params=[Param(key, str(value)[:_MAX_PARAMETER]) for key, value in _parameters(run.spec).items()],
        )
        client.set_terminated(tracked)
        return tracked

    def _challenger(self, name: str, version: object) -> str:
        self._client.set_registered_model_alias(name, "challenger", str(version))
        return f"{name}/{version}"


def _parameters(spec: TrainingSpec) -> dict[str, object]:
    value = spec.to_json()
    return {
        "base_model": spec.base_model,
        "dataset": spec.dataset_name,
        "dataset_digest": spec.dataset_digest,
        "task": spec.task.kind,
        "method": spec.method.kind,
        **{f"{spec.method.kind}.{name}": option for name, option in value["method"].items() if name != "kind"},
        **value["optimization"],
        **({} if spec.trial is None else {"validation_share": spec.trial.validation_share}),
    }


def _figures(run: Run) -> dict[str, float]:
    report = run.report
    assert report is not None
    figures = dict(report.figures)
    if run.spec.trial is not None:
        measured = {report.tuned.name: report.tuned, "loss": report.tuned_loss}
        for name, metric in measured.items():
            if metric is not None:
                figures.update(metric.figures(f"validation_{name}"))
        return figures
    for prefix, metric in (
        ("base", report.base),
        ("champion", report.champion),
        ("tuned", report.tuned),
        ("difference", report.difference),
    ):
        if metric is not None:
            figures[f"{prefix}_{metric.name}"] = metric.value
    if report.corrections is not None:
        for which, found in asdict(report.corrections).items():
            if found is not None:
                figures[f"corrections_{which}"] = found["value"]
    for variant in report.variants:
        figures[f"{variant.precision}_{variant.quality.name}"] = variant.quality.value
        if variant.loss_increase is not None:
            figures[f"{variant.precision}_loss_increase"] = variant.loss_increase.value
        figures[f"{variant.precision}_size_bytes"] = float(variant.size_bytes)
        figures[f"{variant.precision}_tokens_per_second"] = variant.tokens_per_second
    return figures


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    # MLflow raises its own exceptions, and also those of its database, its migrations and its HTTP client.
    try:
        yield
    except Exception as error:
        raise UnavailableError(f"MLflow does not {doing}: {error}", reason="REGISTRY_FAILED") from error
