"""Cycles as the pipeline service would report them, for tests of the command line."""

from __future__ import annotations

from tidemill.common.v1.failure_pb2 import Metric
from tidemill.pipeline.v1.cycle_pb2 import Cycle, GateVerdict, PipelineSpec, Stage
from tidemill.training.v1.run_pb2 import Example, Variant

NAME = "pipelines/headlines/cycles/01jtest"
START = 1_790_000_000
STAGES = ("collect", "clean", "train", "gate", "publish")


def spec() -> PipelineSpec:
    """A pipeline for headlines."""
    found = PipelineSpec(name="headlines")
    found.training.base_model = "smollm2-135m-instruct"
    found.training.generation.prompt_template = "Write a headline.\n\n{text}"
    found.sources.add(source="bbc").text_folder.uri = "/home/tidemill/data/bbc"
    found.rollout.model = "models/headlines"
    return found


def running() -> Cycle:
    """In the middle of the training."""
    cycle = Cycle(name=NAME, spec=spec(), state=Cycle.STATE_RUNNING, trace_id="ab" * 16)
    cycle.create_time.FromSeconds(START)
    for index, name in enumerate(STAGES):
        stage = cycle.stages.add(name=name, state=Stage.STATE_PENDING)
        if index < 2:
            stage.state = Stage.STATE_SUCCEEDED
            stage.start_time.FromSeconds(START + index * 4)
            stage.end_time.FromSeconds(START + index * 4 + 3)
    cycle.stages[0].summary = "2,225 records"
    cycle.stages[1].summary = "2,059 cleaned, 166 rejected"
    cycle.stages[1].reused = True
    train = cycle.stages[2]
    train.state = Stage.STATE_RUNNING
    train.start_time.FromSeconds(START + 8)
    train.progress.phase = "evaluate"
    train.progress.done, train.progress.total, train.progress.unit = 34, 60, "steps"
    train.progress.rate = 0.31
    train.progress.remaining.FromSeconds(84)
    train.progress.figures["loss"] = 2.4137
    return cycle


def metric(value: float, spread: float = 0.02) -> Metric:
    """ROUGE-L on 200 records."""
    return Metric(name="rouge_l", value=value, ci_low=value - spread, ci_high=value + spread, sample_size=200)


def sliced(cycle: Cycle, *, champion: bool) -> Cycle:
    """The cycle with three slices: one that gained, one that lost, and one with few records."""
    for value, other, tuned in (("news", 0.1, 0.2), ("mail", 0.3, 0.1)):
        found = cycle.report.slices.add(attribute="source", value=value, examples=100)
        comparison = found.comparison
        comparison.base.CopyFrom(metric(other))
        comparison.tuned.CopyFrom(metric(tuned))
        comparison.over_base.CopyFrom(metric(tuned - other))
        if champion:
            comparison.champion.CopyFrom(metric(other))
            comparison.over_champion.CopyFrom(metric(tuned - other))
            found.p_worse = 0.002 if tuned < other else 1.0
    cycle.report.slices.add(attribute="source", pooled_values=12, examples=15)
    return cycle


def succeeded() -> Cycle:
    cycle = running()
    cycle.state = Cycle.STATE_SUCCEEDED
    cycle.update_time.FromSeconds(START + 254)
    for stage in cycle.stages:
        stage.state = Stage.STATE_SUCCEEDED
        if not stage.HasField("start_time"):
            stage.start_time.FromSeconds(START + 240)
        if not stage.HasField("end_time"):
            stage.end_time.FromSeconds(START + 250)
    version = cycle.dataset_version
    version.records_in, version.train_count, version.holdout_count = 2225, 1859, 200
    version.rejected_by_reason.update({"exact_duplicate": 159, "near_duplicate": 4, "too_short": 3})
    report = cycle.report
    report.base.CopyFrom(metric(0.129))
    report.tuned.CopyFrom(metric(0.223))
    report.difference.CopyFrom(metric(0.094))
    for number in range(5):
        report.examples.append(
            Example(
                record_id=f"r{number}",
                input="The chancellor said on Tuesday that growth would be slower than the Treasury had hoped. " * 3,
                reference="Brown admits slower growth",
                base="The Chancellor's statement: a long headline that goes on and on about growth " * 2,
                tuned="Brown sees slower growth",
            )
        )
    sizes = {
        "fp32": (541_000_000, 38.2, 96, 0.223),
        "int8": (171_000_000, 83.1, 41, 0.219),
        "int4": (112_000_000, 128.4, 33, 0.165),
    }
    for precision, (size, speed, first, quality) in sizes.items():
        report.variants.append(
            Variant(
                precision=precision,
                size_bytes=size,
                tokens_per_second=speed,
                time_to_first_token_ms=first,
                quality=metric(quality),
            )
        )
    cycle.verdicts.extend(
        [
            GateVerdict(precision="fp32", passed=True, quality_loss=0.0, why="loses nothing"),
            GateVerdict(
                precision="int8", passed=True, quality_loss=0.018, why="fastest of those that pass", chosen=True
            ),
            GateVerdict(
                precision="int4", passed=False, quality_loss=0.26, why="loses 26.0 %, more than the 5 % allowed"
            ),
        ]
    )
    cycle.model_version = "models/headlines/versions/1"
    return cycle
