"""One execution of a pipeline: its spec, its stages and its final state.

What belongs to another service's contract (a source, a recipe, a training spec, a report) is carried here in its
protobuf JSON form and read by its owner; only what the pipeline service itself decides on has types here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any

from services.kit.failure import Failure
from services.pipeline.domain.capture import Capture
from services.pipeline.domain.gate import Gate, Preference, Verdict
from services.pipeline.domain.learning import FeedbackUse, source_of
from services.pipeline.domain.rollout_plan import RolloutPlan
from services.pipeline.domain.triggers import Triggers

Json = Mapping[str, Any]

_PUSHED = "pushed"
STAGES = ("collect", "clean", "train", "gate", "publish")


class StageState(Enum):
    """State of a stage."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self not in (StageState.PENDING, StageState.RUNNING)


class CycleState(Enum):
    """State of a cycle; REJECTED means that no build passed the gate, UNCHANGED that there was nothing new to learn."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    UNCHANGED = "unchanged"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self is not CycleState.RUNNING


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What a cycle runs: the sources, the data set and the training as their owners' JSON, the rest typed."""

    name: str
    sources: tuple[Json, ...]
    dataset: Json
    training: Json
    gate: Gate
    model: str
    preference: Preference
    capture: Capture | None = None
    feedback: FeedbackUse | None = None
    plan: RolloutPlan | None = None
    """How a new version is brought to its users; at once when None."""
    triggers: Triggers | None = None

    @property
    def target_field(self) -> str:
        """The attribute that training learns to give: of a writer its text, of a classifier the label."""
        generation = self.training.get("generation") or {}
        kinds = ("text_classification", "ordinal_classification")
        classification: Json = next((found for kind in kinds if (found := self.training.get(kind))), {})
        return str(generation.get("target_field") or classification.get("label_field") or "")

    @property
    def classifies(self) -> bool:
        """Whether an answer is one label of a text."""
        return not self.training.keys().isdisjoint(("text_classification", "ordinal_classification"))

    @property
    def feedback_source(self) -> str:
        """Name of the source that holds the feedback on this pipeline's model."""
        return source_of(self.name)

    @property
    def dataset_name(self) -> str:
        """`datasets/{dataset}`."""
        return str(self.dataset["name"])

    @property
    def pulled_sources(self) -> tuple[Json, ...]:
        """The sources that imports pull."""
        return tuple(source for source in self.sources if not is_pushed(source))

    @property
    def pushed_source_names(self) -> tuple[str, ...]:
        """Names of the sources whose records others push."""
        return _names(source for source in self.sources if is_pushed(source))

    @property
    def pulled_source_names(self) -> tuple[str, ...]:
        """Names of the sources that imports pull."""
        return _names(self.pulled_sources)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Source names of the collected records, without repeats."""
        return _names(self.sources)


def is_pushed(source: Json) -> bool:
    """Whether others push the records of a source, so that nothing is pulled."""
    return _PUSHED in source


def _names(sources: Iterable[Json]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(source["source"]) for source in sources))


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage; `progress` is the JSON form of tidemill.common.v1.Progress."""

    name: str
    state: StageState = StageState.PENDING
    resources: tuple[str, ...] = ()
    progress: Json | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    reused: bool = False
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Cycle:
    """A cycle; `traceparent` is its W3C trace, `reasons` say why triggers started it (empty: a person did)."""

    pipeline: str
    cycle_id: str
    spec: PipelineSpec
    create_time: datetime
    update_time: datetime
    state: CycleState = CycleState.RUNNING
    stages: tuple[Stage, ...] = tuple(Stage(name) for name in STAGES)
    imports: tuple[Json, ...] = ()
    lessons: Json | None = None
    """What was exported of feedback: `uri`, `count`, and the counts by kind; None before, or without feedback."""
    dataset_version: Json | None = None
    run: str = ""
    report: Json | None = None
    verdicts: tuple[Verdict, ...] = ()
    model_version: str = ""
    failure: Failure | None = None
    traceparent: str = ""
    request_id: str = ""
    reused: bool = False
    cancel_requested: bool = False
    announced: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`pipelines/{pipeline}/cycles/{cycle}`."""
        return f"pipelines/{self.pipeline}/cycles/{self.cycle_id}"

    @property
    def current(self) -> Stage | None:
        """The first stage that has not ended."""
        return next((stage for stage in self.stages if not stage.state.final), None)

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def with_stage(self, changed: Stage) -> Cycle:
        """The cycle with one stage replaced."""
        return replace(self, stages=tuple(changed if s.name == changed.name else s for s in self.stages))

    def ended(self, state: CycleState, now: datetime, failure: Failure | None = None) -> Cycle:
        """The cycle in a final state; stages that did not end are skipped."""
        stages = tuple(
            stage
            if stage.state.final
            else replace(stage, state=StageState.SKIPPED, end_time=now if stage.start_time else None, progress=None)
            for stage in self.stages
        )
        return replace(self, state=state, stages=stages, failure=failure, update_time=now)
