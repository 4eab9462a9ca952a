"""Runs that are compared with the champion, on the hold-out and on held-back corrections."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_service_pb2 as pb

from tests.integration.training.conftest import RunInputs, TrainingProcess, ended, warnings_of

STATE = run_pb2.Run
HELD_BACK = 5


@pytest.fixture
def corrected(inputs: RunInputs, tmp_path: Path) -> run_pb2.DatasetReference:
    """The same data set, with feedback that was held back."""
    folder = shutil.copytree(inputs.reviews, tmp_path / "corrected")
    rows = pq.read_table(folder / "holdout.parquet").slice(0, HELD_BACK).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows), folder / "corrections.parquet")
    return run_pb2.DatasetReference(name="datasets/corrected/versions/1", uri=folder.as_uri(), digest="3" * 64)


@pytest.mark.parametrize("task", ["generation", "text_classification"])
def test_base_champion_and_candidate_are_measured_on_what_was_held_back_too(
    training: TrainingProcess, inputs: RunInputs, corrected: run_pb2.DatasetReference, task: str
) -> None:
    steps = 4 if task == "generation" else 30
    spec = inputs.spec(task, steps=steps, model_name=f"compared-{task.replace('_', '-')}")
    del spec.compression.variants[1:]
    spec.evaluation.min_slice_examples = 4
    spec.evaluation.slices[:] = ["topic"]
    with pytest.raises(grpc.RpcError) as refused:
        training.create(spec)
    assert "spec.evaluation.slices: the data set has no column 'topic'" in str(refused.value.details())
    spec.evaluation.slices[:] = ["source", "label", "length"]
    first = training.wait(training.create(spec).name, ended)
    assert first.state == STATE.STATE_SUCCEEDED, first.failure
    # Nothing was promoted, and nothing was held back.
    assert not first.report.HasField("champion")
    assert not first.report.HasField("corrections")
    assert not any(found.HasField("p_worse") or found.comparison.HasField("champion") for found in first.report.slices)
    training.stub.PromoteRun(pb.PromoteRunRequest(name=first.name), timeout=60)

    spec.dataset.CopyFrom(corrected)
    # The same training again. On several threads its sums differ in the last bits, so it may answer a text differently.
    second = training.wait(training.create(spec).name, ended)
    assert second.state == STATE.STATE_SUCCEEDED, second.failure
    report = second.report
    # All records have one source.
    assert ["evaluation.slices: source has no two slices" in warning for warning in warnings_of(second)] == [True]
    assert report.champion_run == first.name
    assert report.champion.value == pytest.approx(first.report.tuned.value)
    assert report.over_champion.value == pytest.approx(report.tuned.value - report.champion.value)
    assert report.over_champion.ci_low <= report.over_champion.value <= report.over_champion.ci_high
    assert report.over_champion.sample_size == 12
    found = report.corrections
    assert {found.tuned.sample_size, found.champion.sample_size, found.over_champion.sample_size} == {HELD_BACK}
    assert found.over_champion.value == pytest.approx(found.tuned.value - found.champion.value)
    # An untrained classifier has no answer.
    assert found.HasField("base") == found.HasField("over_base") == (task == "generation")
    if task == "generation":
        assert found.over_base.value == pytest.approx(found.tuned.value - found.base.value)

    labels = [each for each in report.slices if each.attribute == "label"]
    assert [(each.value, each.examples) for each in labels] == [("negative", 6), ("positive", 6)]
    lengths = [each for each in report.slices if each.attribute == "length"]
    assert sum(each.examples for each in lengths) == 12
    assert len(lengths) > 1
    assert len(report.slices) == len(labels) + len(lengths)
    for part in labels:
        own = part.comparison
        assert {own.tuned.sample_size, own.champion.sample_size, own.over_champion.sample_size} == {6}
        assert own.over_champion.value == pytest.approx(own.tuned.value - own.champion.value)
        assert own.HasField("over_base") == (task == "generation")
        assert 0 < part.p_worse <= 1
    # Halves of the hold-out.
    assert sum(each.comparison.tuned.value for each in labels) / 2 == pytest.approx(report.tuned.value)

    # A champion that is gone is a warning, and everything else is measured.
    shutil.rmtree(training.run_folder(first.name) / "merged")
    spec.optimization.seed = 5
    third = training.wait(training.create(spec).name, ended)
    assert third.state == STATE.STATE_SUCCEEDED, third.failure
    (warning,) = [found for found in warnings_of(third) if "evaluation.slices" not in found]
    assert first.name in warning
    assert not third.report.HasField("champion")
    assert not any(found.HasField("p_worse") for found in third.report.slices)
    assert not third.report.corrections.HasField("champion")
    assert third.report.corrections.tuned.sample_size == HELD_BACK
