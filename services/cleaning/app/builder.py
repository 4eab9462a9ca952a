"""Does the background work: stale verdicts, pending announcements, versions to build.

All its state is in the store, so it resumes after a crash.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from datetime import datetime

from services.cleaning.app.ports import (
    Announcer,
    DatasetStore,
    Losses,
    LossStore,
    PushedRecords,
    RecordStore,
    SnapshotStore,
    VersionStore,
)
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.app.records import NO_KEY, Records, all_datasets
from services.cleaning.app.rewriting import Rewriting
from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.dataset import (
    Dataset,
    DatasetVersion,
    SnapshotSummary,
    VersionState,
    snapshot_digest,
)
from services.cleaning.domain.originals import NOT_KEPT
from services.cleaning.domain.record import Cleaned, Keeping, RawRecord, RecordKey
from services.cleaning.engine.rewriter import Answers
from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, TidemillError, is_retryable
from services.kit.failure import Failure
from services.kit.ids import made_at_ms
from services.kit.progress import Progress

logger = logging.getLogger(__name__)

_CLEANED_AT_ONCE = 2000
AUGMENT = "augment"
"""Phase of a build in which models are asked for variants."""


class _EndedMeanwhileError(Exception):
    """The version was cancelled while it was being built."""


class Builder:
    """Builds versions; one thread calls `step` in a loop."""

    def __init__(
        self,
        *,
        records: RecordStore,
        datasets: DatasetStore,
        versions: VersionStore,
        snapshots: SnapshotStore,
        recipes: RecipeCache,
        record_cases: Records,
        announcer: Announcer,
        clock: Clock,
        losses: LossStore,
        pushed: PushedRecords,
        rewriting: Rewriting,
        await_timeout_s: float,
        lost_patience_s: float,
    ) -> None:
        self._records = records
        self._datasets = datasets
        self._versions = versions
        self._snapshots = snapshots
        self._recipes = recipes
        self._record_cases = record_cases
        self._announcer = announcer
        self._clock = clock
        self._losses = losses
        self._pushed = pushed
        self._rewriting = rewriting
        self._await_timeout_s = await_timeout_s
        self._lost_patience_s = lost_patience_s
        # By version: number of arrived records, known losses, time of the last change of either, and time and number
        # at which measuring the rate began.
        self._arrivals: dict[str, tuple[int, Losses | None, float, int, float]] = {}
        # Versions whose pushed records have all been read.
        self._read: set[str] = set()
        # Update time of each data set that had no stale verdict: looking for one reads all its records.
        self._fresh: dict[str, datetime] = {}
        # For the others, the update time and the record up to which they are clean, where the next page begins.
        self._clean_to: dict[str, tuple[datetime, RecordKey]] = {}

    def step(self) -> bool:
        """Does the pending work. Returns False if there was none.

        Raises:
            TidemillError: a dependency is unavailable; call it again later.
        """
        busy = False
        for dataset in all_datasets(self._datasets):
            if self._fresh.get(dataset.name) == dataset.update_time:
                continue
            busy |= self._clean_stale(dataset)
        self._record_cases.announce_left()
        building = self._versions.building()
        self._rewriting.only([version.name for version in building])
        for version in building:
            busy |= self._advance(version)
        for version in self._versions.unannounced_versions():
            self._announcer.version_built(version)
            self._versions.mark_version_announced(version)
            busy = True
        return busy

    def _clean_stale(self, dataset: Dataset) -> bool:
        put, after = self._clean_to.get(dataset.name, (dataset.update_time, NO_KEY))
        if put != dataset.update_time:
            after = NO_KEY
        last = self._record_cases.clean_stale(dataset, after)
        if last == after == NO_KEY:
            self._fresh[dataset.name] = dataset.update_time
            return False
        # After the last page it starts from the beginning again, for records that arrived in the meantime.
        self._clean_to[dataset.name] = (dataset.update_time, last)
        return True

    def _advance(self, version: DatasetVersion) -> bool:
        try:
            if not self._pushed_arrived(version) or not self._arrived(version):
                self._continues(version)
                return False
            if not self._rewritten(version):
                return False
            built = self._build(version)
            if built is None:
                return True
            summary, reused = built
            self._forget(version)
            ready = replace(version, state=VersionState.READY, snapshot=summary, reused=reused)
            self._update(ready, Progress("write", summary.records_in, summary.records_in))
            logger.info("%s is ready: %s", version.name, summary.uri)
        except _EndedMeanwhileError:
            self._forget(version)
            logger.info("%s was cancelled", version.name)
        except Exception as error:
            if is_retryable(error):
                self._waits(version, error)
                raise
            logger.exception("%s failed", version.name)
            self._fail(version, error)
        return True

    def _waits(self, version: DatasetVersion, error: Exception) -> None:
        """Shows why it does not continue; if the database itself is what it waits for, only the log says so."""
        progress = version.progress or Progress("await")
        with contextlib.suppress(TidemillError, _EndedMeanwhileError):
            self._update(version, replace(progress, waiting=Failure.of(error, "The build")))

    def _continues(self, version: DatasetVersion) -> None:
        if version.progress is not None and version.progress.waiting is not None:
            self._update(version, replace(version.progress, waiting=None))

    def _pushed_arrived(self, version: DatasetVersion) -> bool:
        """Whether all that was pushed before the build was asked for has been read; stores the progress."""
        if not version.spec.pushed_sources or version.name in self._read:
            return True
        unread = self._pushed.unread(version.name)
        if not unread:
            self._read.add(version.name)
            return True
        shown = version.progress or Progress("await")
        total = max(unread, shown.total)
        if (total - unread, total) != (shown.done, shown.total):
            self._update(version, Progress("await", total - unread, total))
        return False

    def _arrived(self, version: DatasetVersion) -> bool:
        """Whether all awaited records have arrived; stores the progress, and fails when no more arrive."""
        if not version.awaited:
            return True
        counts = self._records.import_counts([item.name for item in version.awaited])
        done = sum(item.arrived(counts.get(item.name)) for item in version.awaited)
        total = sum(item.total for item in version.awaited)
        if done >= total:
            return True
        now, losses = self._clock.monotonic(), self._losses.losses()
        last, known, changed, first, began = self._arrivals.get(version.name, (-1, losses, now, done, now))
        # A consumer notes a loss before it reads the remaining messages, so a new loss restarts the timeout, too.
        if done != last or losses != known:
            self._arrivals[version.name] = (done, losses, now, first, began)
            rate = (done - first) / (now - began) if now > began else 0.0
            self._update(version, Progress("await", done, total, rate))
        elif now - changed > min(self._await_timeout_s, self._lost_patience_s):
            missing = {
                item.name: f"{item.arrived(counts.get(item.name))} of {item.total}"
                for item in version.awaited
                if item.arrived(counts.get(item.name)) < item.total
            }
            text = ", ".join(f"{name}: {figures} records" for name, figures in missing.items())
            if losses is not None and any(_is_older(name, losses.found_time) for name in missing):
                message = (
                    f"Records were lost ({text}): the bus had deleted up to {losses.messages} messages before they "
                    "were read. Create each of these imports again with `resend`, which pulls its source again, then "
                    "build again."
                )
                metadata = {**missing, "lost_messages": str(losses.messages)}
                self._end(version, Failure("RECORDS_LOST", message, metadata))
                return False
            if now - changed <= self._await_timeout_s:
                return False
            message = (
                f"No awaited record has arrived for {self._await_timeout_s:.0f} s ({text}). "
                "See the dead letters of tidemill.records.raw, then build again."
            )
            self._end(version, Failure("AWAITED_RECORDS_MISSING", message, missing))
        return False

    def _rewritten(self, version: DatasetVersion) -> bool:
        """Whether no question to a model is left; stores the progress, and fails if a model cannot be asked."""
        asking = self._rewriting.of(version.name)
        if asking is None or asking.answered:
            return True
        if asking.failure is not None:
            self._end(version, asking.failure)
            return False
        shown = version.progress or Progress("await")
        state = (AUGMENT, asking.done, asking.total, asking.waiting)
        if state != (shown.phase, shown.done, shown.total, shown.waiting):
            passed = self._clock.monotonic() - asking.began
            rate = asking.done / passed if passed > 0 else 0.0
            progress = Progress(AUGMENT, asking.done, asking.total, rate, unit="answers", waiting=asking.waiting)
            self._update(version, progress)
        return False

    def _build(self, version: DatasetVersion) -> tuple[SnapshotSummary, bool] | None:
        """The snapshot, and whether it existed; None if models are asked first."""
        spec = version.spec
        recipe, augmentation = self._recipes.of(spec), self._recipes.augmentation(spec)
        digests = self._records.content_digests(version.dataset, spec, recipe.digest)
        variants = augmentation.digest if augmentation else ""
        digest = snapshot_digest(version.dataset, spec, recipe.digest, digests, variants)
        found = self._snapshots.find(version.dataset, digest)
        if found is not None:
            return found, True
        rows = self._records.with_verdicts(version.dataset, spec)
        # The recipe may have changed since the request: records whose verdict is of another recipe are cleaned here.
        fits = [v is not None and v.recipe_digest == recipe.digest for _, v in rows]
        judged: list[tuple[RawRecord, Cleaned]] = [
            (record, verdict.cleaned) for (record, verdict), fit in zip(rows, fits, strict=True) if fit and verdict
        ]
        left = [record for (record, _), fit in zip(rows, fits, strict=True) if not fit]
        if unkept := [record for record in left if record.keeping is Keeping.NONE]:
            logger.warning(
                "%s rejects %d records: their originals are not kept, so its recipe cannot clean them. Where their "
                "sources still have them, import them again with resend",
                version.name,
                len(unkept),
            )
            judged += [(record, Cleaned("", {}, NOT_KEPT)) for record in unkept]
        missing = [record for record in left if record.keeping is not Keeping.NONE]
        for start in range(0, len(missing), _CLEANED_AT_ONCE):
            self._update(version, Progress("clean", start, len(missing)))
            part = missing[start : start + _CLEANED_AT_ONCE]
            judged += zip(part, recipe.clean_batch((r.text, r.attributes) for r in part), strict=True)
        self._update(version, Progress("deduplicate", 0, len(rows)))
        answers = Answers(self._rewriting.known(version.dataset))
        content = compose_snapshot(version.dataset, spec, recipe, judged, augmentation, answers)
        if answers.missing:
            asking = self._rewriting.begin(version.name, version.dataset, answers.missing.values())
            self._update(version, Progress(AUGMENT, 0, asking.total, unit="answers"))
            return None
        self._check_usable(version.dataset, answers)
        contamination = content.manifest["contamination"]
        if contamination["near_overlap"]:
            logger.warning(
                "%s: %d of %d texts of the hold-out are near duplicates (similarity %g) of training texts, which "
                "makes models look better than they are; add near_dedup to the recipe to drop them",
                version.name,
                contamination["near_overlap"],
                len(content.holdout),
                contamination["near_threshold"],
            )
        self._update(version, Progress("write", 0, len(rows)))
        summary = self._snapshots.write(content)
        # What no variant needs any more is not kept: its record has changed, or is gone.
        self._rewriting.forget(version.dataset, answers.known.keys() - answers.used.keys())
        return summary, False

    def _check_usable(self, dataset: str, answers: Answers) -> None:
        """Refuses a set for which a model has no answer that can be used: then something is wrong with the model."""
        for kind in sorted(set(answers.used.values())):
            used = [answers.known[key] for key, other in answers.used.items() if other == kind]
            if all(answer.dropped for answer in used):
                self._rewriting.forget(dataset, answers.used)
                raise FailedPreconditionError(
                    f"Not one of {len(used)} answers of {kind} can be used: {used[0].detail or used[0].dropped}",
                    reason="AUGMENTATION_UNUSABLE",
                    metadata={"reason": used[0].dropped},
                )

    def _update(self, version: DatasetVersion, progress: Progress) -> None:
        now = self._clock.now()
        changed = replace(version, update_time=now, progress=replace(progress, update_time=now))
        if not self._versions.update_version(changed):
            raise _EndedMeanwhileError

    def _fail(self, version: DatasetVersion, error: Exception) -> None:
        self._end(version, Failure.of(error, "The build"))

    def _forget(self, version: DatasetVersion) -> None:
        self._arrivals.pop(version.name, None)
        self._read.discard(version.name)
        self._pushed.forget(version.name)

    def _end(self, version: DatasetVersion, failure: Failure) -> None:
        self._forget(version)
        self._versions.update_version(
            replace(version, state=VersionState.FAILED, failure=failure, update_time=self._clock.now())
        )


def _is_older(import_name: str, moment: datetime) -> bool:
    """Whether an import began before `moment`; False if its name does not contain its start time."""
    made = made_at_ms(import_name.partition("/")[2])
    return made is not None and made <= moment.timestamp() * 1000
