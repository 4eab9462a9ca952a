"""What feedback does to a snapshot, and what it can never do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.cleaning.adapters.snapshots import FolderSnapshots
from services.cleaning.app.ports import Placement, SnapshotContent
from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec, NewLabels, snapshot_digest
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.domain.record import RawRecord
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from services.kit.storage.artifacts import ArtifactStore

DATASET = "datasets/reviews"
SOURCE, FEEDBACK = "reviews", "answers.reviews"
RECIPE = [OperatorSpec("normalize_whitespace"), OperatorSpec("conflicting_labels"), OperatorSpec("exact_dedup")]


def collected(name: str, text: str, label: str) -> RawRecord:
    return RawRecord(name, SOURCE, text, {"label": label})


def corrected(name: str, text: str, label: str, kind: str = "correction", **more: str) -> RawRecord:
    attributes = {
        "label": label,
        "feedback_kind": kind,
        "feedback_weight": "3" if kind == "correction" else "1",
        "feedback_person": "p-1",
        "feedback_version": "models/reviews/versions/1",
        "feedback_label_field": "label",
        "feedback_time": "2026-01-01T00:00:00+00:00",
    }
    return RawRecord(f"answers/{name}", FEEDBACK, text, {**attributes, **more})


def compose(
    records: Sequence[RawRecord], fraction: float = 0.0, new_labels: NewLabels | None = None
) -> SnapshotContent:
    spec = DatasetSpec(
        (SOURCE, FEEDBACK), tuple(RECIPE), HoldoutSpec(fraction), ("label",), (FEEDBACK,), new_labels=new_labels
    )
    recipe = compile_recipe(default_registry(), RECIPE, ["label"])
    judged = [(record, recipe.clean(record.text, record.attributes)) for record in records]
    return compose_snapshot(DATASET, spec, recipe, judged)


def reasons(content: SnapshotContent) -> Mapping[str, str]:
    return {row.record_id: row.reason for row in content.rejected}


BOTH = [collected("1", "good hotel", "positive"), collected("2", "bad hotel", "negative")]


def test_corrections_are_in_the_training_set_with_their_lineage() -> None:
    content = compose([*BOTH, corrected("a", "not good", "negative")])
    row = next(row for row in content.train if row.record_id == "answers/a")
    assert row.attributes["label"] == "negative"
    for column in ("feedback_weight", "feedback_kind", "feedback_person", "feedback_version"):
        assert column in content.columns
    counts = content.manifest["counts"]["feedback"]
    assert counts == {"correction": 1, "accepted": 0, "people": 1, "held_back": 0, "rejected": 0}
    assert content.manifest["feedback"]["by_person"] == {"p-1": 1}
    assert content.manifest["feedback"]["by_version"] == {"models/reviews/versions/1": 1}


def test_a_correction_takes_the_place_of_a_record_with_the_same_text() -> None:
    content = compose([*BOTH, corrected("a", "Good  hotel", "negative")])
    assert {row.record_id for row in content.train} == {"2", "answers/a"}
    assert reasons(content) == {"1": "superseded_by_feedback"}


def test_an_accepted_answer_gives_way_to_a_record_with_the_same_text() -> None:
    content = compose([*BOTH, corrected("0", "good hotel", "positive", "accepted")])
    assert {row.record_id for row in content.train} == {"1", "2"}
    assert reasons(content) == {"answers/0": "exact_duplicate"}


def test_of_contradictory_feedback_the_newest_correction_counts() -> None:
    content = compose(
        [
            *BOTH,
            corrected("a", "so so", "positive", feedback_time="2026-01-03T00:00:00+00:00"),
            corrected("b", "so so", "negative", feedback_time="2026-01-04T00:00:00+00:00"),
            corrected("c", "so so", "positive", "accepted", feedback_time="2026-01-05T00:00:00+00:00"),
        ]
    )
    assert {row.record_id for row in content.train} == {"1", "2", "answers/b"}
    assert reasons(content) == {"answers/a": "superseded_by_feedback", "answers/c": "superseded_by_feedback"}


def test_a_label_that_no_source_has_is_not_a_class() -> None:
    content = compose([*BOTH, corrected("a", "so so", "postive")])
    assert reasons(content) == {"answers/a": "unknown_label"}


@pytest.mark.parametrize(
    ("records", "people", "rejected"), [(20, 3, ""), (19, 3, "records=19 people=3"), (20, 2, "records=20 people=2")]
)
def test_a_label_that_enough_people_give_is_a_class_that_is_new(records: int, people: int, rejected: str) -> None:
    new = [
        corrected(str(n), f"book number {n} has a torn page", "bookshop", feedback_person=f"p-{n % people}")
        for n in range(records)
    ]
    content = compose([*BOTH, *new, corrected("a", "so so", "postive")], new_labels=NewLabels(20, 3))
    learnt = [row for row in content.train if row.attributes["label"] == "bookshop"]
    assert len(learnt) == (0 if rejected else records)
    assert {row.detail.partition("labels=2 ")[2] for row in content.rejected} == {
        "records=1 people=1",
        *filter(None, [rejected]),
    }
    assert compose([*BOTH, *new]).manifest["counts"]["train"] == 2


def test_what_makes_a_label_a_class_is_a_part_of_the_snapshots_digest() -> None:
    spec = DatasetSpec((SOURCE, FEEDBACK), feedback_sources=(FEEDBACK,))
    digests = [
        snapshot_digest(DATASET, replace(spec, new_labels=new), "r", [])
        for new in (None, NewLabels(20, 3), NewLabels(20, 2))
    ]
    assert len(set(digests)) == 3


def test_the_recipe_of_the_data_set_cleans_feedback() -> None:
    content = compose([*BOTH, corrected("a", "  so \n so ", "positive"), corrected("b", "no label", "")])
    assert next(row for row in content.train if row.record_id == "answers/a").text == "so\nso"
    assert reasons(content)["answers/b"] == "missing_field"


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_feedback_never_enters_the_hold_out_and_never_comes_from_it(fraction: float) -> None:
    texts = [f"review number {n} of a hotel in the town of {n * 7919}" for n in range(300)]
    labels = ["positive", "negative"]
    base = [collected(f"{n:03}", text, labels[n % 2]) for n, text in enumerate(texts[:200])]
    without = compose(base, fraction)
    # Corrections of what is held out, of what is learnt, and of new texts; and again once more sources arrive.
    feedback = [corrected(f"{n:03}", text, labels[(n + 1) % 2]) for n, text in enumerate(texts[100:])]
    content = compose([*base, *feedback], fraction)
    assert [row.record_id for row in content.holdout] == [row.record_id for row in without.holdout]
    assert {row.text: row.attributes["label"] for row in content.holdout} == {
        row.text: row.attributes["label"] for row in without.holdout
    }
    learnt = {row.text for row in content.train}
    held = {row.text for row in content.holdout}
    back = {row.text for row in content.corrections or ()}
    assert not learnt & held
    assert not learnt & back
    assert back & held
    assert {row.source for row in content.corrections or ()} == {FEEDBACK}
    more = [collected(f"x{n}", text, labels[0]) for n, text in enumerate(texts[200:])]
    later = compose([*base, *feedback, *more], fraction)
    assert not {row.text for row in later.holdout} & learnt
    assert content.manifest["counts"]["feedback"]["held_back"] == len(back) > 0


def test_a_near_copy_of_a_held_out_text_is_not_learnt() -> None:
    long = "the room was clean and the staff was friendly and we would come again any time we are in this town number "
    texts = [f"{long}{n} {n * 31} and that is all that {n * 17} has to say about the house" for n in range(60)]
    texts = [f"{text} alpha{n} beta{n * 3} gamma{n * 5}" for n, text in enumerate(texts)]
    base = [collected(f"{n:02}", text, "positive") for n, text in enumerate(texts)]
    base.append(collected("neg", "bad", "negative"))
    held = compose(base, 0.3).holdout
    near = [corrected(f"{n:02}", f"{row.text} indeed", "negative") for n, row in enumerate(held)]
    content = compose([*base, *near], 0.3)
    dropped = [name for name, reason in reasons(content).items() if reason == "near_holdout"]
    learnt = [row for row in content.train if row.source == FEEDBACK]
    assert dropped
    assert not learnt


def test_a_snapshot_keeps_what_is_held_back_apart(tmp_path: Path) -> None:
    snapshots = FolderSnapshots(ArtifactStore(tmp_path.as_uri()))
    content = compose([*BOTH, *(corrected(f"{n}", f"text {n}", "positive") for n in range(40))], 0.5)
    summary = snapshots.write(content)
    assert summary.feedback["held_back"] > 0
    assert snapshots.find(DATASET, content.digest) == summary
    assert content.corrections
    row = content.corrections[0]
    assert snapshots.fate(summary, (FEEDBACK, row.record_id)).placement is Placement.HELD_BACK


def test_without_feedback_a_snapshot_is_what_it_was() -> None:
    spec = DatasetSpec((SOURCE,), tuple(RECIPE), HoldoutSpec(0.2), ("label",))
    before = snapshot_digest(DATASET, spec, "r" * 64, [("1", "d")])
    assert before == "6f4b60f14587573c2a84c71dcffcd4d33530e715939864f11694e17fc6147a7d"
