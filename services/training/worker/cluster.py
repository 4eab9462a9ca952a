"""A training whose processes are on the nodes of a Ray cluster (docs/adr/0070), as the run's own process has it.

That process prepares, evaluates and builds as always. For the training it takes places for all ranks, sends them the
files of the run through Ray's object store, stores the checkpoints that rank 0 hands over, and takes over what was
learnt. When a process or its node is lost, it ends: the service starts it again, and it resumes from the checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.kit.errors import FailedPreconditionError, UnavailableError
from services.kit.ray_cluster import last_line
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import Cluster, Job
from services.training.engine.loop import Cancelled, Checkpoint, StepProgress
from services.training.worker.cluster_nodes import has_gpus, joined
from services.training.worker.cluster_rank import BASE, SNAPSHOT, Ended, File, Message, Rank
from services.training.worker.phases import CHECKPOINTS, kept
from services.training.worker.ranks import ClusterLostError, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)
_PIECE_BYTES = 2**26
_LOOK_S = 1.0
# How long a run waits for places, for example for a node that replaces one that died.
_PLACES_S = 900.0
# How long after a broken connection Ray may need to see that a node is gone.
_SETTLE_S = 90.0
_LEAVE_S = 10.0
# train, events and stop at the same time.
_CALLS_AT_ONCE = 4


def train_on_cluster(
    job: Job,
    cluster: Cluster,
    model: nn.Module,
    *,
    resume: Checkpoint | None,
    on_step: Callable[[StepProgress], None],
    on_checkpoint: Callable[[Checkpoint], object],
    should_stop: Callable[[], bool],
) -> Training:
    """Trains on the cluster and puts what was learnt into `model`.

    Raises:
        Cancelled: `should_stop` returned true; `on_checkpoint` got a checkpoint of the last step before.
        FailedPreconditionError: a process failed; or the cluster had no places for a quarter of an hour.
        ClusterLostError: a process or node is gone, or the cluster.
    """
    learnt = None if resume is None else resume.weights

    def keep(checkpoint: Checkpoint) -> None:
        nonlocal learnt
        on_checkpoint(checkpoint)
        learnt = checkpoint.weights

    with _connected(cluster) as ray:
        gpus = kept(job.folder / "cluster.json", lambda: {"gpus": has_gpus(ray.nodes(), cluster.cpus)})["gpus"]
        bundle = {"CPU": float(cluster.cpus), **({"GPU": 1.0} if gpus else {})}
        with _placed(job, [bundle] * job.spec.processes, should_stop) as group:
            trained = _Ranks(ray, job, cluster, group, bundle).train(on_step, keep, should_stop)
    # The last step has a checkpoint, whatever the spec says.
    assert learnt is not None
    _take_over(model, learnt)
    return trained


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    with ExitStack() as stack:
        try:
            ray = stack.enter_context(joined(cluster.address, log_to_driver=True))
        except UnavailableError as error:
            # It was there when the run was admitted.
            raise ClusterLostError(error.message) from error
        yield ray


@contextmanager
def _placed(job: Job, bundles: list[dict[str, float]], should_stop: Callable[[], bool]) -> Iterator[Any]:
    """Takes a place for each process, on few nodes; waits while the cluster has not enough."""
    from ray.exceptions import RayError
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(bundles, strategy="PACK")
    wanted = " and ".join(f"{count:g} {name}" for name, count in bundles[0].items())
    try:
        deadline, said = time.monotonic() + _PLACES_S, False
        while not group.wait(_LOOK_S):
            if should_stop():
                raise Cancelled
            if time.monotonic() > deadline:
                raise FailedPreconditionError(
                    f"The cluster had no places for {len(bundles)} processes, of {wanted} each, for "
                    f"{_PLACES_S / 60:.0f} minutes. Add nodes, or wait until other work on it ends.",
                    reason="DEVICES_MISSING",
                )
            if not said:
                logger.warning("%s waits for %d places on the cluster, of %s each", job.run, len(bundles), wanted)
                said = True
        yield group
    finally:
        with suppress(RayError):
            remove_placement_group(group)


class _Ranks:
    """The actors of one attempt."""

    def __init__(self, ray: Any, job: Job, cluster: Cluster, group: Any, bundle: dict[str, float]) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._ray, self._job = ray, job
        # The keys stay here, and the champion is nothing that a training needs.
        sent = replace(job, champion=None, cluster=None, signing_key=Path(), trusted_keys=Path(), uri="")
        made = ray.remote(Rank)
        self._actors = [
            made.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0.0),
                max_restarts=0,
                max_concurrency=_CALLS_AT_ONCE,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote(sent, rank, cluster.cpus)
            for rank in range(job.spec.processes)
        ]
        self._addresses: list[str] = []

    def train(
        self,
        on_step: Callable[[StepProgress], None],
        on_checkpoint: Callable[[Checkpoint], object],
        should_stop: Callable[[], bool],
    ) -> Training:
        """Trains, until all have ended or one is lost."""
        folders = self._staged()
        first = self._actors[0]
        (port,) = self._answers([first.open_store.remote(self._addresses[0])])
        running = {
            actor.train.remote(folder, own, self._addresses[0], port): rank
            for rank, (actor, folder, own) in enumerate(zip(self._actors, folders, self._addresses, strict=True))
        }
        following = _Following(first, on_step, on_checkpoint)
        ended: dict[int, Ended] = {}
        asked, deadline = False, float("inf")
        while running and time.monotonic() < deadline:
            ready, _ = self._ray.wait([*running, following.events], timeout=_LOOK_S)
            if should_stop() and not asked:
                first.stop.remote()
                asked = True
            if following.events in ready:
                self._follow(following)
            for each in [each for each in ready if each in running]:
                rank = running.pop(each)
                ended[rank] = self._end(each, rank)
                if ended[rank].failure is not None:
                    deadline = min(deadline, time.monotonic() + (0 if ended[rank].certain else _SETTLE_S))
        if not any(each.failure for each in ended.values()):
            # What rank 0 has said last.
            while self._follow(following):
                pass
        return self._result(ended)

    def _follow(self, following: _Following) -> int:
        try:
            return following.take(self._ray)
        except self._ray.exceptions.RayError as error:
            raise self._lost(0, error) from error

    def _end(self, answer: Any, rank: int) -> Ended:
        try:
            found: Ended = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise self._lost(rank, error) from error
        return found

    def _result(self, ended: dict[int, Ended]) -> Training:
        failures = [each for each in ended.values() if each.failure is not None]
        # The end of one breaks the connections of the others, which is not the cause.
        for each in sorted(failures, key=lambda each: not each.certain):
            assert each.failure is not None
            raise FailedPreconditionError(
                each.failure["message"], reason=each.failure["reason"], metadata=each.failure["metadata"]
            )
        with suppress(self._ray.exceptions.RayError):
            self._ray.get([actor.leave.remote() for actor in self._actors], timeout=_LEAVE_S)
        if any(each.cancelled for each in ended.values()):
            raise Cancelled
        trained = ended[0].training
        assert trained is not None
        return trained

    def _staged(self) -> list[str]:
        """The folder with the files of the run for each process; those of a node share one."""
        places = self._answers([actor.place.remote() for actor in self._actors])
        self._addresses = [address for _, address in places]
        logger.info("%s trains on the nodes %s", self._job.run, ", ".join(self._addresses))
        firsts: dict[str, Any] = {}
        for (node, _), actor in zip(places, self._actors, strict=True):
            firsts.setdefault(node, actor)
        files = [File(path, [self._ray.put(piece) for piece in pieces]) for path, pieces in _files(self._job)]
        folders = dict(
            zip(firsts, self._answers([actor.stage.remote(files) for actor in firsts.values()]), strict=True)
        )
        return [folders[node] for node, _ in places]

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        found = []
        for rank, each in enumerate(calls):
            try:
                found.append(self._ray.get(each))
            except self._ray.exceptions.RayTaskError:
                # An error of its code, such as a full disk, is not a loss.
                raise
            except self._ray.exceptions.RayError as error:
                raise self._lost(rank, error) from error
        return found

    def _lost(self, rank: int, error: Exception) -> ClusterLostError:
        where = f" on {self._addresses[rank]}" if self._addresses else ""
        return ClusterLostError(f"process {rank + 1} of {len(self._actors)}{where} is lost: {last_line(error)}")


@dataclass
class _Following:
    """What rank 0 says, in its order."""

    first: Any
    on_step: Callable[[StepProgress], None]
    on_checkpoint: Callable[[Checkpoint], object]

    def __post_init__(self) -> None:
        self.events = self.first.events.remote()

    def take(self, ray: Any) -> int:
        """Works on what it has said, and asks for what follows; returns how much it was."""
        events = ray.get(self.events)
        for event in events:
            if isinstance(event, StepProgress):
                self.on_step(event)
            elif isinstance(event, Message):
                logging.getLogger(event.logger).log(event.level, "%s", event.text)
            else:
                self.on_checkpoint(event)
                self.first.stored.remote()
        self.events = self.first.events.remote()
        return len(events)


def _files(job: Job) -> Iterator[tuple[str, Iterator[bytes]]]:
    """What the processes need: the data set, the base model, and the checkpoint."""
    base = BaseModels(job.models_dir, job.downloads_dir).prepare(job.spec.base_model)
    folders = (
        (SNAPSHOT, job.snapshot, "**/*"),
        (BASE, base, "**/*"),
        (CHECKPOINTS, job.folder / CHECKPOINTS, "step-*/*"),
    )
    for name, folder, pattern in folders:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield str(Path(name, path.relative_to(folder))), _pieces(path)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _take_over(model: nn.Module, learnt: dict[str, Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(learnt[name])
    model.eval()
