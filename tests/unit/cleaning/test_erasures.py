"""Erased texts are gone from the database and from old snapshots, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.cleaning.adapters.snapshots import FolderSnapshots
from services.cleaning.app.ports import Arrival, Fate, Placement
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec
from services.cleaning.domain.record import RawRecord
from services.kit.errors import UnavailableError
from services.kit.storage.artifacts import ArtifactStore, file_digest, local_path
from tests.unit.cleaning.test_feedback import DATASET, FEEDBACK, RECIPE, SOURCE, collected, corrected
from tests.unit.cleaning.test_use_cases import Harness
from tests.unit.cleaning.test_use_cases import harness as harness

DORA, BEN = "p-00000000000d05a0", "p-0000000000000be4"
SPEC = DatasetSpec((SOURCE, FEEDBACK), tuple(RECIPE), HoldoutSpec(0.3), ("label",), (FEEDBACK,))
SECRET = "only dora says this"


class Loop:
    """A data set of 20 collected records and what two people corrected, with one version of it."""

    def __init__(self, harness: Harness) -> None:
        self.harness, self.arrival = harness, 0
        harness.datasets.put(DATASET, SPEC)
        records = [collected(str(n), f"review number {n}", "positive" if n % 2 else "negative") for n in range(20)]
        for number in range(8):
            records.append(corrected(f"d{number}", f"{SECRET} {number}", "negative", feedback_person=DORA))
            records.append(corrected(f"b{number}", f"of ben {number}", "negative", feedback_person=BEN))
        self.messages = [self.arrived(record) for record in records]
        harness.records.collect(self.messages)

    def arrived(self, record: RawRecord) -> Arrival:
        self.arrival += 1
        values = (record.record_id, record.source, record.text, record.attributes)
        return Arrival(RawRecord(*values, arrival=self.arrival))

    def build(self) -> str:
        name = self.harness.datasets.build_version(DATASET, [], "", "")[0].name
        self.harness.work()
        return name

    def folder(self, version: str) -> Path:
        snapshot = self.harness.datasets.version(version).snapshot
        assert snapshot is not None
        path = local_path(snapshot.uri)
        assert path is not None
        return path

    def texts(self, version: str) -> set[str]:
        parts = ("train", "holdout", "corrections")
        return {
            row["text"] for part in parts for row in pq.read_table(self.folder(version) / f"{part}.parquet").to_pylist()
        }

    def holds(self, version: str, words: str) -> bool:
        """Whether any byte of the database or of a snapshot still says it."""
        tables = (pq.read_table(path) for path in sorted(self.folder(version).glob("*.parquet")))
        if any(words in str(table.to_pylist()) for table in tables):
            return True
        files = [*self.harness.folder.parent.glob("cleaning.sqlite*"), *self.folder(version).iterdir()]
        return any(words.encode() in path.read_bytes() for path in files)


@pytest.fixture
def loop(harness: Harness) -> Loop:
    return Loop(harness)


def test_what_a_person_taught_is_gone_from_the_database_and_from_old_versions(loop: Loop) -> None:
    version = loop.build()
    before = loop.texts(version)
    assert {f"{SECRET} {number}" for number in range(8)} <= before
    assert loop.holds(version, SECRET)
    summary = loop.harness.datasets.version(version).snapshot
    # Ben corrected what dora had asked: it goes as well.
    done = loop.harness.erasures.erase(DORA, ["answers/b0"])
    assert (done.records, done.versions) == (9, [version])
    assert not loop.holds(version, SECRET)
    assert not loop.holds(version, "of ben 0")
    assert loop.texts(version) == {text for text in before if SECRET not in text and text != "of ben 0"}
    # The lineage stays, with a mark, and the manifest describes the files as they are.
    after = loop.harness.datasets.version(version).snapshot
    assert summary is not None
    assert after is not None
    assert (after.digest, after.uri, after.train_count, after.erased) == (
        summary.digest, summary.uri, summary.train_count, 9,
    )  # fmt: skip
    manifest = json.loads((loop.folder(version) / "manifest.json").read_text())
    assert manifest["erased"]["rows"] == 9
    assert manifest["digest"] == summary.digest
    for name, described in manifest["files"].items():
        assert described["sha256"] == file_digest(loop.folder(version) / name)
    # The next version is without it, and a repeat changes nothing.
    following = loop.build()
    assert following != version
    assert loop.texts(following) == loop.texts(version)
    again = loop.harness.erasures.erase(DORA, ["answers/b0"])
    assert (again.records, again.versions) == (0, [])


def test_a_late_repeat_brings_nothing_back_and_new_content_is_new(loop: Loop) -> None:
    loop.harness.erasures.erase(DORA, ["answers/b0"])
    loop.harness.records.collect(loop.messages)
    version = loop.build()
    assert not loop.holds(version, SECRET)
    assert "of ben 0" not in loop.texts(version)
    # Someone else corrects the same answer afterwards.
    loop.harness.records.collect([loop.arrived(corrected("d0", "later words", "positive", feedback_person=BEN))])
    assert "later words" in loop.texts(loop.build())
    assert loop.harness.explanations.explain("answers/d1", FEEDBACK)[0].withdrawn


def test_records_of_a_source_are_never_erased(loop: Loop) -> None:
    version = loop.build()
    loop.harness.erasures.erase(DORA, ["7", "answers/b1"])
    assert "review number 7" in loop.texts(version)
    assert loop.harness.explanations.explain("7", SOURCE)[1][0].fate in (
        Fate(Placement.TRAIN),
        Fate(Placement.HOLDOUT),
    )


@pytest.mark.parametrize("file", ["train.parquet", "manifest.json"])
def test_a_kill_between_two_files_is_repaired_by_the_repeat(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    version = loop.build()
    real = ArtifactStore.replace_file

    def killed(store: ArtifactStore, source: Path, uri: str) -> None:
        if uri.endswith(file):
            raise KeyboardInterrupt
        real(store, source, uri)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.harness.erasures.erase(DORA, [])
    loop.harness.restart()
    assert loop.harness.erasures.erase(DORA, []).versions == [version]
    assert not loop.holds(version, SECRET)
    snapshot = loop.harness.datasets.version(version).snapshot
    assert snapshot is not None
    assert snapshot.erased == 8
    # What is described is what is there: the snapshot is not taken for damaged.
    assert FolderSnapshots(ArtifactStore(f"file://{loop.harness.folder}")).find(DATASET, snapshot.digest) == snapshot


def test_a_version_whose_files_are_gone_does_not_keep_others_from_being_erased(loop: Loop) -> None:
    version = loop.build()
    (loop.folder(version) / "holdout.parquet").unlink()
    loop.harness.records.collect([loop.arrived(collected("more", "another review", "positive"))])
    following = loop.build()
    (loop.folder(version) / "rejected.parquet").unlink()
    assert sorted(loop.harness.erasures.erase(DORA, []).versions) == sorted({version, following})
    assert not loop.holds(version, SECRET)
    assert not loop.holds(following, SECRET)


def test_while_a_version_is_built_it_waits(loop: Loop) -> None:
    name = loop.harness.datasets.build_version(DATASET, [], "", "")[0].name
    with pytest.raises(UnavailableError, match="is being built"):
        loop.harness.erasures.erase(DORA, [])
    loop.harness.work()
    loop.harness.erasures.erase(DORA, [])
    assert not loop.holds(name, SECRET)
