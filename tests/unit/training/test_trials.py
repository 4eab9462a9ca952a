"""Trials: what identifies one, and which records it is measured on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tidemill.training.v1 import run_pb2

from services.kit.errors import FailedPreconditionError
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.domain.trials import Trial
from services.training.engine.methods import stored_method
from services.training.engine.methods.lora import Lora
from services.training.engine.record_shares import validation_split
from services.training.entrypoints.mapping import spec_from, spec_to

_SPEC = TrainingSpec(
    model_name="reviews",
    base_model="base",
    dataset_name="datasets/reviews/versions/1",
    dataset_uri="file:///d",
    dataset_digest="0" * 64,
    task=TextClassificationTask("label", 32),
    method=Lora(r=4),
    optimization=Optimization(max_steps=2),
)


def test_trials_of_two_searches_are_one_run_and_a_trial_is_no_run_of_its_values() -> None:
    first, second, other = (
        replace(_SPEC, trial=Trial(study, share)).digest("0") for study, share in (("a", 0.1), ("b", 0.1), ("a", 0.2))
    )
    assert first == second
    assert len({first, other, _SPEC.digest("0")}) == 3


def test_a_trial_is_stored_and_sent_whole() -> None:
    tried = replace(_SPEC, trial=Trial("reviews", 0.25))
    assert TrainingSpec.from_json(tried.to_json(), stored_method) == tried
    assert TrainingSpec.from_json(_SPEC.to_json(), stored_method) == _SPEC
    assert spec_from(spec_to(tried), run_pb2.Trial(study="reviews", validation_share=0.25)) == tried


def test_variants_of_a_record_are_never_measured_nor_learnt_without_it() -> None:
    rows = [{"record_id": f"rec_{at}", "text": ""} for at in range(200)]
    rows += [{"record_id": f"var_{at}", "text": "", "variant_of": f"rec_{at}"} for at in range(200)]
    learnt, measured = validation_split(rows, 0.2)
    kept_back = {row["record_id"] for row in measured}
    assert 20 < len(kept_back) < 60
    assert not any("variant_of" in row for row in measured)
    assert not kept_back & {row.get("variant_of", row["record_id"]) for row in learnt}
    assert len(learnt) == 2 * (200 - len(kept_back))
    assert validation_split(rows[::-1], 0.2)[1][::-1] == measured


def test_a_share_that_leaves_nothing_to_measure_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="none to measure"):
        validation_split([{"record_id": "rec_1", "text": ""}] * 3, 1e-9)
