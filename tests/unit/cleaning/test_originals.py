"""How originals are kept: as they are, encrypted, or not at all; and which tenants' records a data set takes."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from services.cleaning.adapters.dataset_store import SqlDatasetStore
from services.cleaning.adapters.record_store import SqlRecordStore, keys_in_use
from services.cleaning.adapters.tables import raw_records, verdicts
from services.cleaning.adapters.vault import Vault, open_vault
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec, VersionState
from services.cleaning.domain.originals import NOT_KEPT, OriginalsPolicy
from services.cleaning.domain.record import Erased, Keeping, RawRecord
from services.kit.errors import DataLossError, FailedPreconditionError
from services.kit.storage.database import forget_deleted
from tests.conftest import OpenDatabase
from tests.recipes import parse_operators
from tests.unit.cleaning.test_use_cases import KEY, NAME, Harness

CANARY = "kingfisher-4711"
OTHER_KEY = bytes(range(32, 64))


@pytest.fixture
def engine(open_service_database: OpenDatabase) -> Engine:
    return open_service_database("cleaning")


@pytest.fixture
def harness(tmp_path: Path, engine: Engine) -> Harness:
    return Harness(engine, tmp_path / "artifacts")


def arrived(
    record_id: str,
    text: str,
    data_class: str = "private",
    arrival: int = 1,
    said: Keeping | None = None,
    **more: Any,
) -> Arrival:
    attributes = {"topic": f"about {text}", **({"data_class": data_class} if data_class else {})}
    return Arrival(RawRecord(record_id, "news", text, attributes, arrival=arrival, **more), originals=said)


def stored(engine: Engine, folder: Path) -> str:
    """All that the database holds: each column of each row, and on SQLite the bytes of its files."""
    with engine.connect() as connection:
        rows = [tuple(row) for table in (raw_records, verdicts) for row in connection.execute(select(table))]
    files = b"".join(file.read_bytes() for file in folder.glob("cleaning.sqlite*"))
    return repr(rows) + files.decode("latin-1")


def test_a_private_record_is_nowhere_in_the_database_and_is_used_as_any_other(
    harness: Harness, engine: Engine, tmp_path: Path
) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrived("a", f"the  {CANARY}"), arrived("b", "an open one", "public")])
    assert CANARY not in stored(engine, tmp_path)
    assert "an open one" in stored(engine, tmp_path)
    # What other parts get of it is what it is.
    assert harness.announcer.kept == [(NAME, "a", f"the {CANARY}"), (NAME, "b", "an open one")]
    found, (explained,) = harness.explanations.explain("a", "news")
    assert (found.record.text, found.record.keeping) == (f"the  {CANARY}", Keeping.ENCRYPTED)
    assert found.record.attributes["topic"] == f"about the  {CANARY}"
    assert [effect.operator for effect in explained.explanation.effects] == ["normalize_whitespace"]
    # A recipe that changes cleans it again.
    harness.put("normalize_whitespace", {"regex_replace": {"pattern": "the", "replacement": "a"}})
    harness.work()
    assert (NAME, "a", f"a {CANARY}") in harness.announcer.kept
    name = harness.build()
    harness.work()
    snapshot = harness.datasets.version(name).snapshot
    assert snapshot is not None
    assert (snapshot.records_in, snapshot.train_count + snapshot.holdout_count) == (2, 2)
    assert CANARY not in stored(engine, tmp_path)


def test_what_was_stored_as_it_is_becomes_encrypted_when_it_arrives_again(
    harness: Harness, engine: Engine, tmp_path: Path
) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrived("a", CANARY, said=Keeping.PLAIN)])
    assert CANARY in stored(engine, tmp_path)
    harness.records.collect([arrived("a", CANARY, arrival=2)])
    forget_deleted(engine)
    assert CANARY not in stored(engine, tmp_path)
    assert harness.records.record("a").verdicts[0].cleaned.text == CANARY


def test_an_original_that_is_not_kept_leaves_what_was_made_of_it(
    harness: Harness, engine: Engine, tmp_path: Path
) -> None:
    mask = {"regex_replace": {"pattern": "king[a-z]+-[0-9]+", "replacement": "[BIRD]", "fields": ["text", "topic"]}}
    harness.put(mask)
    harness.records.collect([arrived("a", f"the {CANARY}", said=Keeping.NONE), arrived("b", "stays", "public")])
    assert CANARY not in stored(engine, tmp_path)
    found, (explained,) = harness.explanations.explain("a", "news")
    assert (found.record.keeping, found.record.text, found.record.attributes) == (
        Keeping.NONE,
        "",
        {"data_class": "private"},
    )
    assert (explained.explanation.cleaned.text, explained.explanation.effects) == ("the [BIRD]", ())
    name = harness.build()
    harness.work()
    first = harness.datasets.version(name).snapshot
    assert first is not None
    assert (first.records_in, dict(first.rejected_by_reason)) == (2, {})

    # A newer recipe cannot be applied to it: it is rejected, which is counted and explained.
    harness.put(mask, "normalize_whitespace")
    harness.work()
    name = harness.build()
    harness.work()
    second = harness.datasets.version(name).snapshot
    assert second is not None
    assert dict(second.rejected_by_reason) == {"original_not_kept": 1}
    (explained,) = harness.explanations.explain("a", "news")[1]
    assert explained.explanation.cleaned.rejection == NOT_KEPT
    assert [effect.rejection for effect in explained.explanation.effects] == [NOT_KEPT]

    # When it arrives again it is in the next version, though its content is the same.
    harness.records.collect([arrived("a", f"the {CANARY}", arrival=2, said=Keeping.NONE)])
    name = harness.build()
    harness.work()
    third = harness.datasets.version(name).snapshot
    assert third is not None
    assert (dict(third.rejected_by_reason), third.digest != second.digest) == ({}, True)
    # The recipe of before finds what it had made.
    harness.put(mask)
    name = harness.build()
    harness.work()
    assert harness.datasets.version(name).state is VersionState.READY


def test_a_key_that_is_missing_is_an_error_and_nothing_is_lost(harness: Harness, engine: Engine) -> None:
    harness.put("normalize_whitespace")
    harness.records.collect([arrived("a", CANARY), arrived("b", "open", "public")])
    harness.store = SqlRecordStore(engine, Vault([OTHER_KEY]))
    harness.restart()
    with pytest.raises(FailedPreconditionError, match="is missing") as error:
        harness.records.record("a")
    assert error.value.reason == "ORIGINALS_KEY_MISSING"
    harness.put("normalize_whitespace", "fix_unicode")
    harness.work()
    # The others are cleaned, and a version is not built without it.
    assert harness.records.record("b").verdicts[0].recipe_digest == harness.datasets.get(NAME).recipe_digest
    name = harness.build()
    harness.work()
    version = harness.datasets.version(name)
    assert version.state is VersionState.FAILED
    assert version.failure is not None
    assert version.failure.reason == "ORIGINALS_KEY_MISSING"
    harness.store = SqlRecordStore(engine, Vault([KEY, OTHER_KEY]))
    harness.restart()
    harness.work()
    name = harness.build()
    harness.work()
    assert harness.datasets.version(name).state is VersionState.READY
    assert harness.records.record("a").record.text == CANARY


def test_without_a_key_nothing_that_needs_one_is_stored(engine: Engine) -> None:
    store = SqlRecordStore(engine)
    record = replace(arrived("a", CANARY).record, keeping=Keeping.ENCRYPTED)
    with pytest.raises(FailedPreconditionError, match="key of originals"):
        store.collect([Arrival(record)], [], [])
    assert store.records("a", "", 9) == []


def test_keys_are_rotated_by_a_further_line(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "keys" / "originals"
    first = open_vault(file, keys_in_use(engine))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(open_vault(file, []).key_ids) == list(first.key_ids)

    def collect(vault: Vault, record_id: str) -> None:
        record = replace(arrived(record_id, f"{record_id} {CANARY}").record, keeping=Keeping.ENCRYPTED)
        SqlRecordStore(engine, vault).collect([Arrival(record)], [], [])

    collect(first, "old")
    with file.open("a", encoding="utf-8") as stream:
        stream.write(OTHER_KEY.hex() + "\n")
    second = open_vault(file, keys_in_use(engine))
    collect(second, "new")
    assert keys_in_use(engine) == set(second.key_ids)
    store = SqlRecordStore(engine, second)
    assert [store.records(each, "", 9)[0].record.text for each in ("old", "new")] == [f"old {CANARY}", f"new {CANARY}"]
    with pytest.raises(FailedPreconditionError, match="is missing"):
        SqlRecordStore(engine, first).records("new", "", 9)


def test_a_key_file_that_is_gone_is_not_made_again(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "keys" / "originals"
    record = replace(arrived("a", CANARY).record, keeping=Keeping.ENCRYPTED)
    SqlRecordStore(engine, open_vault(file, [])).collect([Arrival(record)], [], [])
    kept = file.read_text(encoding="utf-8")
    file.unlink()
    with pytest.raises(FailedPreconditionError, match="is gone"):
        open_vault(file, keys_in_use(engine))
    assert not file.exists()
    for content, mode in (("no key", 0o600), ("", 0o600), ("00", 0o600), (kept, 0o640)):
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)
        with pytest.raises(FailedPreconditionError, match="put back the file") as error:
            open_vault(file, keys_in_use(engine))
        assert error.value.reason == "ORIGINALS_KEY_UNUSABLE"


def test_what_is_encrypted_belongs_to_its_record(engine: Engine) -> None:
    store = SqlRecordStore(engine, Vault([KEY]))
    records = [replace(arrived(each, f"{each} {CANARY}").record, keeping=Keeping.ENCRYPTED) for each in "ab"]
    store.collect([Arrival(record) for record in records], [], [])
    with engine.begin() as connection:
        theirs = connection.execute(select(raw_records.c.sealed).where(raw_records.c.record_id == "b")).scalar_one()
        connection.execute(update(raw_records).where(raw_records.c.record_id == "a").values(sealed=theirs))
    with pytest.raises(DataLossError, match="belongs to another record"):
        store.records("a", "", 9)


@pytest.mark.parametrize("keeping", list(Keeping))
def test_erasure_removes_feedback_however_its_original_is_kept(
    engine: Engine, tmp_path: Path, keeping: Keeping
) -> None:
    store, person = SqlRecordStore(engine, Vault([KEY])), "p-0123456789abcdef"
    record = RawRecord("a", "answers.news", CANARY, {"feedback_person": person, "note": CANARY}, keeping=keeping)
    other = replace(record, record_id="b", attributes={"feedback_person": "p-fedcba9876543210"})
    store.collect([Arrival(record), Arrival(other)], [], [])
    assert store.erase(Erased(person)) == 1
    assert store.erase(Erased("p-fedcba9876543210")) == 1
    assert CANARY not in stored(engine, tmp_path)
    (found,) = store.records("a", "", 9)
    assert (found.withdrawn, found.record.text, found.record.attributes) == (True, "", {})
    assert keys_in_use(engine) == set()


def test_the_policy_is_careful_and_says_what_is_wrong() -> None:
    policy = OriginalsPolicy()

    def of(data_class: str, said: Keeping | None = None, policy: OriginalsPolicy = policy) -> Keeping:
        return policy.of(arrived("a", "x", data_class).record, said)

    assert [of(each) for each in ("public", "internal", "", "private", "secret")] == [
        *[Keeping.PLAIN] * 3,
        # A class that no one knows is taken for the most careful one.
        *[Keeping.ENCRYPTED] * 2,
    ]
    assert of("private", Keeping.PLAIN) is Keeping.PLAIN
    assert of("public", Keeping.NONE) is Keeping.NONE
    other = OriginalsPolicy.parse(" internal=encrypted,private=none, unclassified=encrypted")
    assert [of(each, policy=other) for each in ("public", "internal", "", "private")] == [
        Keeping.PLAIN,
        Keeping.ENCRYPTED,
        Keeping.ENCRYPTED,
        Keeping.NONE,
    ]
    assert OriginalsPolicy.parse("") == policy
    for wrong in ("secret=plain", "private", "private=no", "private=plain=none"):
        with pytest.raises(ValueError, match="write CLASS=HOW"):
            OriginalsPolicy.parse(wrong)


def test_a_data_set_takes_the_records_of_its_tenants(harness: Harness) -> None:
    operators = tuple(parse_operators(["normalize_whitespace"]))
    spec = DatasetSpec(("news",), operators, HoldoutSpec(0.2), tenants=("acme",))
    harness.datasets.put(NAME, spec)
    assert harness.datasets.get(NAME).spec == spec
    owners = {"a": "acme", "b": "globex", "c": ""}
    harness.records.collect([arrived(key, f"text {key}", "", tenant=owner) for key, owner in owners.items()])
    assert harness.announcer.kept == [(NAME, "a", "text a")]

    def built() -> Sequence[int]:
        name = harness.build()
        harness.work()
        snapshot = harness.datasets.version(name).snapshot
        assert snapshot is not None
        return snapshot.records_in, harness.datasets.version(name).number

    assert built() == (1, 1)
    assert harness.records.count(["news"], 0, ["acme", "globex"]) == (2, 1)
    assert harness.records.count(["news"], 0) == (3, 1)
    assert harness.records.record("b").record.tenant == "globex"
    assert [each.dataset for each in harness.explanations.explain("a", "")[1]] == [NAME]
    assert harness.explanations.explain("b", "")[1] == []
    # Another tenant is another data set; all tenants are one without a name.
    harness.datasets.put(NAME, replace(spec, tenants=("acme", "globex")))
    harness.work()
    assert built() == (2, 2)
    harness.datasets.put(NAME, replace(spec, tenants=()))
    harness.work()
    assert built() == (3, 3)
    # A record whose owner changes leaves.
    harness.datasets.put(NAME, spec)
    harness.records.collect([arrived("a", "text a", "", 2, tenant="globex")])
    harness.work()
    assert built()[0] == 0


def test_feedback_belongs_to_a_data_set_whoever_gave_it() -> None:
    spec = DatasetSpec(("news", "answers.news"), feedback_sources=("answers.news",), tenants=("acme",))
    assert [spec.takes(*pair) for pair in (("news", "acme"), ("news", ""), ("answers.news", ""), ("mail", "acme"))] == [
        True,
        False,
        True,
        False,
    ]


def test_a_spec_of_an_earlier_release_takes_all(engine: Engine, harness: Harness) -> None:
    harness.put("normalize_whitespace")
    (found,) = SqlDatasetStore(engine).datasets("", 9)
    assert found.spec.tenants == ()
