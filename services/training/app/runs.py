"""Create, read, cancel and promote runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, NotFoundError
from services.kit.ids import new_id
from services.training.app.ports import BaseModelIdentity, Registry, RunStore
from services.training.domain.recipe import Recipe
from services.training.domain.run import Run, RunState


class Runs:
    """Threads share it."""

    def __init__(
        self,
        store: RunStore,
        models: BaseModelIdentity,
        registry: Registry,
        clock: Clock,
        uri_of: Callable[[str], str],
    ) -> None:
        self._store, self._models, self._registry, self._clock, self._uri_of = store, models, registry, clock, uri_of

    def create(self, recipe: Recipe, request_id: str, traceparent: str) -> Run:
        """Queues a run; answers with the succeeded one of the same outcome, or of the same request."""
        known = self._store.by_request(request_id) if request_id else None
        if known is not None:
            return known
        digest = recipe.digest(self._models.identity(recipe.base_model))
        earlier = self._store.succeeded(digest)
        if earlier is not None:
            return replace(earlier, reused=True)
        run_id, now = new_id(), self._clock.now()
        return self._store.create(
            Run(
                f"runs/{run_id}",
                recipe,
                digest,
                self._uri_of(run_id),
                now,
                now,
                request_id=request_id,
                traceparent=traceparent,
            )
        )

    def get(self, name: str) -> Run:
        """The run.

        Raises:
            NotFoundError: there is none.
        """
        run = self._store.get(name)
        if run is None:
            raise NotFoundError(f"There is no {name}.", reason="RUN_NOT_FOUND", metadata={"run": name})
        return run

    def page(self, before: str, limit: int) -> Sequence[Run]:
        """Runs older than the given one, newest first."""
        return self._store.page(before, limit)

    def cancel(self, name: str) -> Run:
        """Asks a run to stop; one that ended stays as it is."""
        if not self.get(name).state.final:
            self._store.request_cancel(name)
        return self.get(name)

    def promote(self, name: str) -> Run:
        """Makes the run's model the champion of the registry.

        Raises:
            FailedPreconditionError: the run did not succeed.
            UnavailableError: the registry does not answer.
        """
        run = self.get(name)
        if run.state is not RunState.SUCCEEDED:
            raise FailedPreconditionError(
                f"{name} is {run.state.value}; only a succeeded run can be promoted.",
                reason="RUN_NOT_SUCCEEDED",
                metadata={"run": name},
            )
        if not run.model_version:
            # The registry was away when the run ended.
            run = replace(run, model_version=self._registry.register(run), warnings=())
            self._store.update(run)
        self._registry.promote(run.model_version)
        return run
