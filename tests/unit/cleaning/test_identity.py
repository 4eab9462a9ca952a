"""A record is its source and its id; of one record the newest counts, in whatever order it comes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from services.cleaning.adapters.record_store import SqlRecordStore
from services.cleaning.app.ports import Arrival
from services.cleaning.app.snapshot import compose_snapshot
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec, snapshot_digest
from services.cleaning.domain.record import RawRecord, Withdrawal
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from tests.conftest import OpenDatabase
from tests.examples import examples
from tests.recipes import parse_operators

_RUNS = itertools.count()
SPEC = DatasetSpec(("mail", "news"), tuple(parse_operators(["normalize_whitespace", "exact_dedup"])), HoldoutSpec(0.3))


def test_equal_ids_of_two_sources_are_two_records_of_a_snapshot() -> None:
    records = [RawRecord(str(n), source, f"{source} {n}", {}) for source in ("mail", "news") for n in range(10)]
    records.append(RawRecord("3", "third", "news 3", {}))
    recipe = compile_recipe(default_registry(), SPEC.operators)
    content = compose_snapshot(
        "datasets/both", SPEC, recipe, [(r, recipe.clean(r.text, r.attributes)) for r in records]
    )
    kept = {(row.source, row.record_id, row.text) for row in (*content.train, *content.holdout)}
    assert kept == {(r.source, r.record_id, r.text) for r in records[:-1]}
    (rejected,) = content.rejected
    assert (rejected.source, rejected.record_id) == ("third", "3")
    assert rejected.detail == "duplicate_of=sources/news/records/3"


def test_what_earlier_releases_built_keeps_its_digest_and_its_hold_out() -> None:
    """Figures of the release before records were identified by their source."""
    records = [RawRecord(f"r{n:03}", ("news", "mail")[n % 2], f"Text {n}", {"topic": "t"}) for n in range(60)]
    digests = [(r.record_id, r.content_digest) for r in records]
    spec = replace(SPEC, operators=())
    assert snapshot_digest("datasets/both", spec, "0" * 64, digests) == (
        "35e8fe0b824393dd1f23c03c603495049d81834cd8c813e511fa0d67629b69ea"
    )
    texts = [f"Text  number {n // 3 * 3 if n % 3 else n}" for n in range(60)]
    records = [replace(record, text=text) for record, text in zip(records, texts, strict=True)]
    recipe = compile_recipe(default_registry(), SPEC.operators)
    content = compose_snapshot(
        "datasets/both", SPEC, recipe, [(r, recipe.clean(r.text, r.attributes)) for r in records]
    )
    assert [row.record_id for row in content.holdout] == ["r006", "r018", "r051"]
    assert len(content.train) == 17


Said = RawRecord | Withdrawal


@st.composite
def histories(draw: st.DrawFn) -> list[Said]:
    """What ingest published of two records of two sources: pushed, pulled from two origins, withdrawn from them."""
    said: list[Said] = []
    for arrival in range(1, draw(st.integers(1, 8)) + 1):
        record_id, source = draw(st.sampled_from(["1", "2"])), draw(st.sampled_from(["mail", "news"]))
        origin = draw(st.sampled_from(["", "folder", "file"]))
        if origin and draw(st.booleans()):
            said.append(Withdrawal(record_id, source, "imports/w", origin, arrival))
        else:
            event_time = draw(st.integers(0, 3))
            name = "imports/i" if origin else ""
            said.append(RawRecord(record_id, source, f"text {arrival}", {}, name, event_time, arrival, origin))
    return said


def end_of(said: Sequence[Said]) -> dict[tuple[str, str], str]:
    """Texts by key that must be there in the end."""
    records = [item for item in said if isinstance(item, RawRecord)]
    texts: dict[tuple[str, str], str] = {}
    for record in sorted(records, key=lambda record: (record.event_time, record.arrival)):
        texts[record.key] = record.text
    holders: dict[tuple[str, str], dict[str, bool]] = {}
    for item in sorted(said, key=lambda item: item.arrival):
        holders.setdefault(item.key, {})[item.origin] = isinstance(item, RawRecord)
    return {key: text for key, text in texts.items() if any(holders[key].values())}


def kept_of(engine: Engine, batches: Sequence[Sequence[Said]]) -> dict[tuple[str, str], str]:
    """What a store keeps of it, in sources of this call's own."""
    run = next(_RUNS)

    def own(item: Said) -> Said:
        return replace(item, source=f"{item.source}-{run}", import_name=item.import_name and f"{item.import_name}{run}")

    store = SqlRecordStore(engine)
    for batch in batches:
        mine = [own(item) for item in batch]
        store.collect(
            [Arrival(item) for item in mine if isinstance(item, RawRecord)],
            [item for item in mine if isinstance(item, Withdrawal)],
            [],
        )
    rows = store.with_verdicts("datasets/x", DatasetSpec((f"mail-{run}", f"news-{run}")))
    return {(record.source.removesuffix(f"-{run}"), record.record_id): record.text for record, _ in rows}


def test_the_newest_counts_in_whatever_order_it_comes(open_service_database: OpenDatabase) -> None:
    engine = open_service_database("cleaning")

    @examples(40)
    @given(histories(), st.randoms(use_true_random=False))
    def check(said: list[Said], rng: random.Random) -> None:
        expected = end_of(said)
        order = [*said, *rng.sample(said, len(said) // 2)]
        rng.shuffle(order)
        cut = rng.randint(0, len(order))
        assert kept_of(engine, [said]) == expected
        assert kept_of(engine, [[item] for item in order]) == expected
        assert kept_of(engine, [order[:cut], order[cut:]]) == expected

    check()
