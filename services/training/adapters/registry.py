"""MLflow: parameters and metrics of succeeded runs, model versions with the aliases challenger and champion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.kit.errors import UnavailableError
from services.training.domain.run import Run

_RUN_TAG = "tidemill.run"


class MlflowRegistry:
    """Implements `services.training.app.ports.Registry`."""

    def __init__(self, tracking_uri: str, artifacts_uri: str) -> None:
        self._uri, self._artifacts = tracking_uri, artifacts_uri
        self._opened: Any = None

    def register(self, run: Run) -> str:
        """See the port."""
        with _translated(f"register {run.name}"):
            return self._register(run)

    def promote(self, model_version: str) -> None:
        """See the port."""
        name, _, number = model_version.partition("/")
        with _translated(f"promote {model_version}"):
            self._client.set_registered_model_alias(name, "champion", number)

    @property
    def _client(self) -> Any:
        if self._opened is None:
            from mlflow.tracking import MlflowClient

            self._opened = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._opened

    def _register(self, run: Run) -> str:
        client, name, report = self._client, run.recipe.model_name, run.report
        assert report is not None
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        for version in client.search_model_versions(f"name = '{name}'"):
            # Registered before a crash.
            if version.tags.get(_RUN_TAG) == run.name:
                client.set_registered_model_alias(name, "challenger", version.version)
                return f"{name}/{version.version}"
        experiment = client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(name, artifact_location=f"{self._artifacts}/{name}")
        )
        tracked = client.create_run(experiment_id, run_name=run.name, tags={_RUN_TAG: run.name}).info.run_id
        recipe = run.recipe
        parameters = {
            "base_model": recipe.base_model,
            "dataset": recipe.dataset_name,
            "dataset_digest": recipe.dataset_digest,
            "task": recipe.task.kind,
            "method": recipe.method.kind,
            **recipe.to_json()["optimization"],
        }
        for key, value in parameters.items():
            client.log_param(tracked, key, value)
        figures = dict(report.figures)
        for prefix, metric in (("base", report.base), ("tuned", report.tuned), ("difference", report.difference)):
            if metric is not None:
                figures[f"{prefix}_{metric.name}"] = metric.value
        for variant in report.variants:
            figures[f"{variant.precision}_{variant.quality.name}"] = variant.quality.value
            if variant.loss_increase is not None:
                figures[f"{variant.precision}_loss_increase"] = variant.loss_increase.value
            figures[f"{variant.precision}_size_bytes"] = float(variant.size_bytes)
            figures[f"{variant.precision}_tokens_per_second"] = variant.tokens_per_second
        for key, figure in figures.items():
            client.log_metric(tracked, key, figure)
        client.set_terminated(tracked)
        made = client.create_model_version(name, source=run.uri, run_id=tracked, tags={_RUN_TAG: run.name})
        client.set_registered_model_alias(name, "challenger", made.version)
        return f"{name}/{made.version}"


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    # Beside its own exceptions MLflow lets those of its database, its migrations and its HTTP client through.
    try:
        yield
    except Exception as error:
        raise UnavailableError(f"MLflow does not {doing}: {error}", reason="REGISTRY_FAILED") from error
