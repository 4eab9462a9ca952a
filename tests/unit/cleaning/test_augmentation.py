"""Variants are made for the training part only, name their parent, and share its fate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from services.cleaning.adapters.rows import dataset_of, dataset_row
from services.cleaning.app.ports import Placement, SnapshotContent
from services.cleaning.app.recipe_cache import RecipeCache
from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.augmentation import AugmentSpec
from services.cleaning.domain.dataset import Dataset, DatasetSpec, HoldoutSpec, VersionState
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.domain.record import RawRecord
from services.cleaning.engine.augmenter import Draw
from services.cleaning.engine.augmenters.random_deletion import RandomDeletion
from services.cleaning.engine.card.markdown import markdown_card
from services.cleaning.engine.contamination import near_to
from services.cleaning.engine.registry import default_registry
from services.cleaning.engine.words import Word
from services.cleaning.entrypoints.mapping import spec_from, spec_to, version_to
from services.kit.errors import NotFoundError
from tests.recipes import parse_operators
from tests.unit.cleaning.test_erasures import DORA, Loop
from tests.unit.cleaning.test_erasures import SPEC as FEEDBACK_SPEC
from tests.unit.cleaning.test_feedback import DATASET as FEEDBACK_DATASET
from tests.unit.cleaning.test_use_cases import NAME, Harness, arrival
from tests.unit.cleaning.test_use_cases import harness as harness

DELETE = AugmentSpec((OperatorSpec("random_deletion", {"rate": 0.2}),), seed=5, per_record=2)
SPEC = DatasetSpec(
    ("news",), tuple(parse_operators(["exact_dedup"])), HoldoutSpec(0.3), required_attributes=("topic",), augment=DELETE
)
THINGS = ("window", "garden", "kitchen", "doctor", "engine", "river", "market", "teacher", "castle", "forest", "bridge")


def sentence(number: int) -> str:
    one, two, three = (THINGS[number // step % len(THINGS)] for step in (1, 11, 121))
    return f"{one} stories were printed quickly while {two} people walked towards old {three} places number {number}"


def raw(number: int, text: str = "", **attributes: str) -> RawRecord:
    return RawRecord(f"r{number:03}", "news", text or sentence(number), {"topic": f"t{number % 3}", **attributes})


def compose(records: list[RawRecord], spec: DatasetSpec = SPEC) -> SnapshotContent:
    recipes = RecipeCache(default_registry())
    recipe = recipes.of(spec)
    cleaned = recipe.clean_batch((r.text, r.attributes) for r in records)
    judged = list(zip(records, cleaned, strict=True))
    return compose_snapshot("datasets/news", spec, recipe, judged, recipes.augmentation(spec))


def test_only_the_training_part_gets_variants_and_each_names_its_parent() -> None:
    records = [raw(number) for number in range(120)]
    content, plain = compose(records), compose(records, replace(SPEC, augment=None))
    variants = [row for row in content.train if "variant_of" in row.attributes]
    assert [row for row in content.train if row not in variants] == plain.train
    assert content.holdout == plain.holdout
    assert len(content.holdout) > 20
    parents = {row.record_id: row for row in plain.train}
    assert {row.attributes["variant_of"] for row in variants} <= parents.keys()
    for row in variants:
        parent = parents[row.attributes["variant_of"]]
        assert row.record_id in (f"{parent.record_id}~1", f"{parent.record_id}~2")
        assert row.source == parent.source
        assert row.attributes == {
            **parent.attributes,
            "variant_of": parent.record_id,
            "variant_by": "random_deletion",
        }
        assert row.text != parent.text
    assert list(content.train) == sorted(content.train, key=lambda row: (row.record_id, row.source))
    about = content.manifest["augmentation"]
    assert about["variants"] == {"random_deletion": len(variants)}
    assert len(variants) + sum(about["dropped"].values()) == 2 * len(plain.train)
    assert content.manifest["counts"]["train"] == len(content.train)
    assert content.manifest["counts"]["kept"] == plain.manifest["counts"]["kept"]


def test_rate_and_seed_choose_the_parents() -> None:
    records = [raw(number) for number in range(200)]

    def parents(rate: float, seed: int) -> set[str]:
        spec = replace(SPEC, augment=replace(DELETE, rate=rate, seed=seed))
        return {row.attributes["variant_of"] for row in compose(records, spec).train if "variant_of" in row.attributes}

    few, more = parents(0.2, 1), parents(0.6, 1)
    assert few < more
    assert 0.1 < len(few) / len(parents(1.0, 1)) < 0.3
    assert parents(0.2, 2) != few


def test_what_resembles_the_holdout_is_neither_parent_nor_variant() -> None:
    records = [raw(number) for number in range(120)]
    held = compose(records).holdout
    # A training record that differs from a held-out one in its last word.
    near = [raw(500 + n, f"{row.text} again{n}") for n, row in enumerate(held)]
    content = compose([*records, *near])
    unseen = [row.text for row in content.holdout]
    originals = {row.record_id: row.text for row in content.train if "variant_of" not in row.attributes}
    close = {list(originals)[at] for at in near_to(unseen, list(originals.values()))}
    assert close
    variants = [row for row in content.train if "variant_of" in row.attributes]
    assert not close & {row.attributes["variant_of"] for row in variants}
    assert not near_to(unseen, [row.text for row in variants])
    assert content.manifest["augmentation"]["dropped"]["parent_near_holdout"] == 2 * len(close)


def test_a_variant_with_the_text_of_any_record_is_dropped() -> None:
    """A rejected record counts, too: it may have had another label."""
    spec = replace(
        SPEC,
        operators=tuple(parse_operators(["exact_dedup"])),
        holdout=HoldoutSpec(0.0),
        augment=AugmentSpec((OperatorSpec("synonym_replacement", {"groups": [["good", "fine"], ["cheap", "low"]]}),)),
    )
    records = [raw(1, "good food"), raw(2, "fine food"), raw(3, "fine food", topic="other"), raw(4, "cheap room")]
    content = compose(records, spec)
    assert [(row.record_id, row.text) for row in content.train] == [
        ("r001", "good food"),
        ("r002", "fine food"),
        ("r004", "cheap room"),
        ("r004~1", "low room"),
    ]
    assert content.manifest["augmentation"]["dropped"] == {"duplicate": 2}


def test_an_id_that_a_record_has_stays_the_records() -> None:
    spec = replace(SPEC, holdout=HoldoutSpec(0.0), augment=replace(DELETE, per_record=1))
    taken = RawRecord("r001~1", "news", sentence(7), {"topic": "t"})
    content = compose([raw(1), taken], spec)
    assert {row.record_id: row.text for row in content.train}["r001~1"] == taken.text
    assert content.manifest["augmentation"]["dropped"] == {"id_taken": 1}


def test_an_augmenter_that_fails_on_a_text_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    vary = RandomDeletion.vary

    def fails(self: RandomDeletion, words: Sequence[Word], draw: Draw) -> str | None:
        if any(word.text == "castle" for word in words):
            raise ZeroDivisionError
        return vary(self, words, draw)

    monkeypatch.setattr(RandomDeletion, "vary", fails)
    content = compose([raw(number) for number in range(40)], replace(SPEC, holdout=HoldoutSpec(0.0)))
    about = content.manifest["augmentation"]
    assert about["dropped"]["augmenter_failed"] >= 2
    assert about["variants"]["random_deletion"] > 40


def test_standard_terms_of_the_recipe_are_kept() -> None:
    terms = {"term_map": {"terms": {"heart attack": "myocardial infarction"}}}
    spec = replace(
        SPEC,
        operators=tuple(parse_operators([terms])),
        holdout=HoldoutSpec(0.0),
        augment=AugmentSpec((OperatorSpec("random_deletion", {"rate": 0.5}),), per_record=8),
    )
    content = compose([raw(1, "yesterday one patient had heart attack after long walking outside")], spec)
    variants = [row.text for row in content.train if "variant_of" in row.attributes]
    assert len(variants) > 2
    assert all("myocardial infarction" in text for text in variants)


def test_the_same_content_gives_the_same_snapshot_in_any_order() -> None:
    records = [raw(number) for number in range(40)]
    content = compose(records)
    assert compose(records[::-1]) == content
    assert compose(records, replace(SPEC, augment=replace(DELETE, seed=6))).digest != content.digest
    assert compose(records, replace(SPEC, augment=None)).digest != content.digest


def test_a_spec_survives_database_and_message(harness: Harness) -> None:
    augment = replace(DELETE, rate=0.5, keep=("C++",))
    spec = replace(SPEC, augment=augment)
    dataset = Dataset(NAME, spec, "d", harness.clock.now(), harness.clock.now())
    row = {**dataset_row(dataset), "spec": json.loads(json.dumps(dataset_row(dataset)["spec"]))}
    assert dataset_of(row).spec == spec  # type: ignore[arg-type]  # a row is read like a mapping
    assert spec_from(spec_to(spec)) == spec
    assert spec_from(spec_to(SPEC)) == SPEC


def augmented(harness: Harness) -> str:
    harness.datasets.put(NAME, DatasetSpec(("news",), (), HoldoutSpec(0.2), augment=DELETE))
    harness.records.collect([arrival(f"r{number}", sentence(number)) for number in range(40)])
    name = harness.build()
    harness.work()
    return name


def test_equal_content_gives_the_existing_version(harness: Harness) -> None:
    name = augmented(harness)
    version = harness.datasets.version(name)
    assert version.state is VersionState.READY
    assert version.snapshot is not None
    assert harness.build() == name
    # Another seed is another data set; the first one again is the first version.
    spec = harness.datasets.get(NAME).spec
    harness.datasets.put(NAME, replace(spec, augment=replace(DELETE, seed=9)))
    other = harness.build()
    harness.work()
    assert other != name
    harness.datasets.put(NAME, spec)
    again = harness.build()
    harness.work()
    assert harness.datasets.version(again).snapshot == version.snapshot


def test_version_card_and_explanation_show_the_variants(harness: Harness) -> None:
    version = harness.datasets.version(augmented(harness))
    message = version_to(version)
    assert message.variant_counts["random_deletion"] > 40
    assert message.train_count > message.variant_counts["random_deletion"]
    card = markdown_card(harness.cards.figures(version.name))
    assert "## Variants by augmenter" in card
    assert "Attribute variant" not in card
    assert version.snapshot is not None
    parent = next(
        row
        for row in pq.read_table(f"{version.snapshot.uri.removeprefix('file://')}/train.parquet").to_pylist()
        if row["variant_of"]
    )["variant_of"]
    record, (found,) = harness.explanations.explain(parent, "")
    assert record.record.record_id == parent
    assert found.fate is not None
    assert found.fate.placement is Placement.TRAIN
    made = found.fate.variants[-1]
    assert made.augmenter == "random_deletion"
    record, (found,) = harness.explanations.explain(made.record_id, "news")
    assert record.record.record_id == parent
    assert found.fate is not None
    assert found.fate.variants == [made]
    with pytest.raises(NotFoundError, match=f"{parent}~16"):
        harness.explanations.explain(f"{parent}~16", "news")


def test_a_table_that_is_not_there_is_refused_at_once(harness: Harness) -> None:
    operators = (OperatorSpec("synonym_replacement", {"tables": ["cilin"]}),)
    with pytest.raises(RecipeError) as caught:
        harness.datasets.put(NAME, replace(SPEC, augment=AugmentSpec(operators)))
    assert [each.field for each in caught.value.violations] == ["augment.operators[0].params.tables[0]"]


def test_variants_are_erased_with_their_parent(harness: Harness) -> None:
    loop = Loop(harness)
    spec = replace(FEEDBACK_SPEC, augment=replace(DELETE, operators=(OperatorSpec("random_swap"),)))
    harness.datasets.put(FEEDBACK_DATASET, spec)
    name = loop.build()
    rows = pq.read_table(loop.folder(name) / "train.parquet").to_pylist()
    variants = [row for row in rows if row["variant_of"]]
    theirs = [row for row in variants if row["feedback_person"] == DORA]
    answers = [row for row in variants if row["source"].startswith("answers.") and row not in theirs]
    assert theirs
    assert answers
    harness.erasures.erase(DORA, [answers[0]["variant_of"]])
    left = pq.read_table(loop.folder(name) / "train.parquet").to_pylist()
    assert not [row for row in left if row["feedback_person"] == DORA or "dora" in row["text"]]
    assert not [row for row in left if answers[0]["variant_of"] in (row["record_id"], row["variant_of"])]
    assert len([row for row in left if row["variant_of"]]) >= len(variants) - len(theirs) - 2
