"""What runs parts: processes of this machine, or Ray Data on a cluster (docs/adr/0063).

Both call `attempt` in other processes and get plain values back, because neither brings our errors over unharmed.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from typing import Any

from services.cleaning.adapters.bulk_files import PartCleaner
from services.cleaning.app.bulk import Part, PartReport
from services.cleaning.domain.dataset import DatasetSpec
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import default_registry
from services.kit.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError, as_plain, from_plain
from services.kit.ray_cluster import connected, last_line


@dataclass(frozen=True, slots=True)
class BulkJob:
    """What a process needs to clean parts."""

    # Recipes differ by their digests already; a spec cannot be hashed.
    spec: DatasetSpec = field(compare=False)
    recipe_digest: str
    cleaner: PartCleaner
    key: bytes = b""
    """The secret of pseudonyms; empty without one."""

    def __repr__(self) -> str:
        """Without the secret: libraries write what they run into their logs."""
        return f"BulkJob({self.recipe_digest[:12]})"


def recipe_of(spec: DatasetSpec, key: bytes) -> CompiledRecipe:
    """The compiled recipe of a spec.

    Raises:
        RecipeError: it cannot be applied.
    """
    return compile_recipe(default_registry(key), spec.operators, spec.required_attributes)


def attempt(job: BulkJob, part: Part) -> dict[str, Any]:
    """Cleans a part in this process: `{"report": …}` or `{"error": …}`."""
    try:
        return {"report": asdict(job.cleaner.clean(part, _compiled(job)))}
    except Exception as error:
        return {"error": as_plain(error)}


@functools.lru_cache(maxsize=1)
def _compiled(job: BulkJob) -> CompiledRecipe:
    """The recipe of a job; compiling reads dictionaries, which takes too long to do for every part."""
    recipe = recipe_of(job.spec, job.key)
    if recipe.digest != job.recipe_digest:
        raise FailedPreconditionError(
            f"{os.uname().nodename} compiles another recipe than this machine ({recipe.digest[:12]}, not "
            f"{job.recipe_digest[:12]}): install the same release of Tidemill, and of the packages with operators, on "
            "all of them.",
            reason="RECIPE_DIFFERS",
        )
    return recipe


def _report(outcome: dict[str, Any]) -> PartReport:
    if "error" in outcome:
        raise from_plain(outcome["error"])
    return PartReport(**outcome["report"])


class ProcessEngine:
    """Implements `services.cleaning.app.bulk.PartEngine` with processes of this machine; it opens no port."""

    def __init__(self, job: BulkJob, processes: int) -> None:
        self._job, self._processes = job, processes

    def run(self, parts: Sequence[Part]) -> Iterator[PartReport]:
        """See the port."""
        if not parts:
            return
        spawn = multiprocessing.get_context("spawn")
        count = min(self._processes, len(parts))
        pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_end_with_parent)
        try:
            for done in as_completed([pool.submit(attempt, self._job, part) for part in parts]):
                yield _report(done.result())
        except BrokenProcessPool as error:
            raise ResourceExhaustedError(
                "A process that cleans was ended, most likely because memory ran out. What is finished is kept: run "
                "the command again with fewer --processes, or with smaller row groups.",
                reason="PROCESS_ENDED",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends when the parent has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayEngine:
    """Implements `services.cleaning.app.bulk.PartEngine` with Ray Data on a cluster.

    It starts no Ray of its own: that would listen on every address of the machine, whatever it is asked to bind to.
    """

    def __init__(self, job: BulkJob, processes: int | None, address: str) -> None:
        self._job, self._processes, self._address = job, processes, address

    def run(self, parts: Sequence[Part]) -> Iterator[PartReport]:
        """See the port."""
        if not parts:
            return
        with self._connected() as ray:
            processes = self._processes or max(int(ray.cluster_resources().get("CPU", 1)), 1)
            yield from self._reports(parts, min(processes, len(parts)))

    def _reports(self, parts: Sequence[Part], processes: int) -> Iterator[PartReport]:
        import ray.data
        from ray.exceptions import RayError

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        items = ray.data.from_items(
            [{"part": json.dumps(asdict(part))} for part in parts], override_num_blocks=len(parts)
        )
        outcomes = items.map_batches(
            _attempt_batch,
            fn_kwargs={"job": self._job},
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(size=processes),
            num_cpus=1,
        )
        try:
            for row in outcomes.iter_rows():
                yield _report(json.loads(row["outcome"]))
        except RayError as error:
            raise UnavailableError(
                f"Ray could not clean a part: {last_line(error)}. What is finished is kept: run the command again. "
                "All machines of a cluster need this release of tidemill[bulk], and the input and output folders.",
                reason="RAY_FAILED",
            ) from error

    def _connected(self) -> AbstractContextManager[Any]:
        return connected(
            self._address,
            "--ray-address",
            install="tidemill[bulk]",
            without="then the processors of this machine are used without it",
        )


def _attempt_batch(batch: dict[str, Any], job: BulkJob) -> dict[str, Any]:
    """A task of Ray Data: cleans the parts in a batch."""
    outcomes = []
    for text in batch["part"]:
        value = json.loads(text)
        outcomes.append(json.dumps(attempt(job, Part(**{**value, "groups": tuple(value["groups"])}))))
    return {"outcome": outcomes}
