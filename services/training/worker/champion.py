"""The champion's answers to what a run's own model is asked, so that both are compared on the same examples."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from services.kit.errors import NotFoundError, explained
from services.kit.storage.artifacts import ArtifactStore, local_path
from services.training.adapters.job import Champion, Job
from services.training.engine.loop import Cancelled
from services.training.worker.phases import kept

logger = logging.getLogger(__name__)
_FOLDER = "champion"

Rows = Sequence[dict[str, str]]
T = TypeVar("T")
Answer = Callable[[Champion, Path, Rows], list[T]]
"""Answers rows with the champion, whose merged model lies in a folder. Answers are kept as JSON."""


@dataclass(frozen=True, slots=True)
class ChampionAnswers(Generic[T]):
    """Answers to the hold-out and to held-back feedback; None if there is no champion or it cannot be asked.

    `warnings` say why it could not be asked.
    """

    run: str = ""
    holdout: list[T] | None = None
    corrections: list[T] | None = None
    warnings: tuple[str, ...] = field(default=())


def champion_answers(job: Job, holdout: Rows, corrections: Rows, answer: Answer[T]) -> ChampionAnswers[T]:
    """Asks the champion. One whose model is gone or cannot be loaded is a warning, not a failure of the run."""
    champion = job.champion
    if champion is None:
        return ChampionAnswers()

    def ask() -> Any:
        try:
            if champion.spec.task.kind != job.spec.task.kind:
                return {"wrong": f"it was trained for {champion.spec.task.kind}"}
            folder = _merged(job, champion)
            found = answer(champion, folder, [*holdout, *corrections])
            return {"holdout": found[: len(holdout)], "corrections": found[len(holdout) :]}
        except Cancelled:
            raise
        except Exception as error:
            known = explained(error)
            logger.warning("the champion %s cannot be compared: %r", champion.run, error)
            return {"wrong": known.message if known else f"{type(error).__name__}: {error}"}
        finally:
            shutil.rmtree(job.folder / _FOLDER, ignore_errors=True)

    # By its name: after a restart another run may be the champion.
    found = kept(job.folder / "eval" / f"champion-{champion.run.rpartition('/')[2]}.json", ask)
    if wrong := found.get("wrong"):
        return ChampionAnswers(warnings=(f"champion: {champion.run} was not compared: {wrong.rstrip('.')}.",))
    return ChampionAnswers(champion.run, found["holdout"], found["corrections"] if corrections else None)


def _merged(job: Job, champion: Champion) -> Path:
    """The folder with the champion's merged model, fetched first if it is in a remote store."""
    uri = f"{champion.uri}/merged"
    own = local_path(uri)
    folder = ArtifactStore(uri).fetch_folder(uri, job.folder / _FOLDER) if own is None else own
    if not folder.is_dir():
        raise NotFoundError(f"its model is gone from {uri}")
    return folder
