"""Several labels of a text: as a data set has them, from which score they are assigned, what they are measured by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from services.training.domain.tasks import MultiLabelClassificationTask, OrdinalClassificationTask, Task
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.labels import best_thresholds, calibrates, labels_of_row, lift
from services.training.engine.methods.full import Full
from services.training.engine.metrics import (
    QUADRATIC_KAPPA,
    compared,
    f1_of,
    label_counts,
    label_metrics,
    measured,
    ordinal_scores,
)
from services.training.entrypoints.mapping import spec_from, spec_to


def _row(labels: str) -> dict[str, str]:
    return {"record_id": "rec_7", "text": "abc", "labels": labels}


@pytest.mark.parametrize(
    ("column", "separator", "found"),
    [
        ('["b", "a", "b"]', "", ["a", "b"]),
        ("[]", "", []),
        ('["\u96e8; \u96ea"]', "", ["雨; 雪"]),
        ("b; a", ";", ["a", "b"]),
        ("", ";", []),
        ("one", "|", ["one"]),
    ],
)
def test_labels_are_read_each_once_in_their_order(column: str, separator: str, found: list[str]) -> None:
    assert labels_of_row(_row(column), "labels", separator) == found


@pytest.mark.parametrize(
    ("column", "separator", "why"),
    [
        ("", "", "not a JSON list"),
        ("urgent", "", "name the separator"),
        ('"urgent"', "", "not a JSON list"),
        ('["a", 1]', "", "not a JSON list"),
        ('["a", ""]', "", "is empty"),
        ("a;;b", ";", "is empty"),
    ],
)
def test_labels_that_cannot_be_used_name_the_record(column: str, separator: str, why: str) -> None:
    with pytest.raises(FailedPreconditionError, match=why) as refused:
        labels_of_row(_row(column), "labels", separator)
    assert "rec_7" in refused.value.message


def test_the_calibration_is_about_the_share_and_variants_go_with_their_record() -> None:
    rows = [{"record_id": f"rec_{number}", "text": "x"} for number in range(2000)]
    chosen = [row for row in rows if calibrates(row, 0.1)]
    assert 150 < len(chosen) < 250
    variants = [{"record_id": "v", "variant_of": row["record_id"], "text": "y"} for row in rows]
    assert [calibrates(each, 0.1) for each in variants] == [calibrates(each, 0.1) for each in rows]


def test_a_threshold_is_the_best_one_and_stays_where_it_does_not_matter() -> None:
    wanted = np.array([[at < 6] * 3 + [at < 2] for at in range(12)])
    low = np.where(wanted[:, 0], 0.3, 0.1)
    clear = np.where(wanted[:, 0], 0.9, 0.1)
    high = np.where(wanted[:, 0], 0.9, 0.7)
    few = np.where(wanted[:, 3], 0.3, 0.1)
    # Fewer than 5 texts have the last label.
    found = best_thresholds(np.stack([low, clear, high, few], 1), wanted)
    assert found == [pytest.approx(0.2), 0.5, pytest.approx(0.8), 0.5]


def test_no_threshold_reaches_a_better_f1() -> None:
    random = np.random.default_rng(3)
    wanted = random.random((80, 1)) < 0.3
    scores = np.round(np.clip(wanted * 0.2 + random.random((80, 1)) * 0.7, 0, 1), 2)
    [threshold] = best_thresholds(scores, wanted)
    best = max(f1_score(wanted, scores >= each) for each in np.unique(scores))
    assert f1_score(wanted, scores >= threshold) == pytest.approx(best)


def test_what_is_taken_off_the_logits_moves_the_threshold_to_a_half() -> None:
    [moved] = lift([0.2])
    assert 1 / (1 + math.exp(-(math.log(0.2 / 0.8) - moved))) == pytest.approx(0.5)


WANTED = [["a"], ["a", "b"], [], ["c"], ["b", "c"], ["a"]]
FOUND = [["a"], ["b"], [], ["c", "a"], ["d"], []]


def test_the_metrics_are_those_of_scikit_learn() -> None:
    def table(rows: list[list[str]]) -> list[list[bool]]:
        return [[label in row for label in "abcd"] for row in rows]

    right, given, found = table(WANTED), table(FOUND), label_metrics(WANTED, FOUND)
    assert found["micro_f1"].value == pytest.approx(f1_score(right, given, average="micro"))
    # Of labels that no text has there is no F1.
    macro = f1_score([row[:3] for row in right], [row[:3] for row in given], average="macro")
    assert found["macro_f1"].value == pytest.approx(macro)
    assert found["subset_accuracy"].value == pytest.approx(accuracy_score(right, given))
    for metric in found.values():
        assert metric.ci_low < metric.value < metric.ci_high
        assert metric.sample_size == 6


def test_labels_of_two_models_are_compared_on_the_same_texts() -> None:
    micro, right, given = f1_of("micro_f1"), label_counts(WANTED, WANTED), label_counts(WANTED, FOUND)
    found = compared(micro, right * 10, None, given * 10)
    assert found.champion is not None
    assert found.over_champion is not None
    assert found.over_champion.name == "micro_f1_difference"
    assert found.over_champion.value == pytest.approx(1 - found.champion.value)
    assert found.over_champion.ci_low > 0
    same = compared(micro, given, None, given).over_champion
    assert same is not None
    assert (same.value, same.ci_low, same.ci_high) == (0, 0, 0)


def test_the_kappa_is_that_of_scikit_learn() -> None:
    wanted, found = [0, 1, 2, 3, 4, 2, 1, 0], [0, 2, 2, 3, 3, 2, 0, 1]
    kappa = compared(QUADRATIC_KAPPA, ordinal_scores(wanted, found), None, ordinal_scores(wanted, wanted))
    assert kappa.tuned.value == pytest.approx(cohen_kappa_score(wanted, found, weights="quadratic"))
    assert kappa.over_champion is not None
    assert kappa.over_champion.value == pytest.approx(kappa.tuned.value - 1)
    assert measured(QUADRATIC_KAPPA, ordinal_scores([1, 1], [1, 1])).value == 0


def _spec(task: Task) -> TrainingSpec:
    return TrainingSpec(
        "m", "b", "datasets/d/versions/1", "file:///d", "0" * 64, task, Full(), Optimization(max_steps=2)
    )


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (MultiLabelClassificationTask("labels", 32, " "), "spec.multi_label_classification.separator"),
        (
            MultiLabelClassificationTask("labels", 32, "", 0.6),
            "spec.multi_label_classification.calibration_share",
        ),
        (OrdinalClassificationTask("label", 32, ("one",)), "spec.ordinal_classification.labels"),
        (OrdinalClassificationTask("label", 32, ("a", "b", "a")), "spec.ordinal_classification.labels"),
    ],
)
def test_a_wrong_option_is_named(task: Task, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        _spec(task)
    assert [each.field for each in refused.value.violations] == [field]


@pytest.mark.parametrize(
    "task", [MultiLabelClassificationTask("labels"), OrdinalClassificationTask("label", 32, ("low", "high"))]
)
def test_a_spec_survives_its_message(task: Task) -> None:
    spec = _spec(task)
    assert spec_from(spec_to(spec)) == spec
