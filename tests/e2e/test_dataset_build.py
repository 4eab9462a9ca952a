"""A data set without training, from a file to its card, as a user makes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import ROOT, Mesh

pytestmark = pytest.mark.real


@pytest.fixture
def example(mesh: Mesh) -> Path:
    folder = mesh.scratch / "medical"
    shutil.copytree(ROOT / "examples" / "medical", folder, dirs_exist_ok=True)
    return folder / "reports.yaml"


def test_a_data_set_is_built_again_only_when_its_source_changed(mesh: Mesh, example: Path) -> None:
    first = mesh.json("dataset", "build", str(example))
    assert (first["state"], first["records_in"]) == ("STATE_READY", "8")
    assert first["rejected_by_reason"] == {"exact_duplicate": "1", "too_short": "1"}
    parts = [pq.read_table(f"{first['uri'].removeprefix('file://')}/{part}.parquet") for part in ("train", "holdout")]
    texts = {text for part in parts for text in part["text"].to_pylist()}
    assert "[PATIENT_INFO]，联系电话[PHONE]，因急性心肌梗死入院，既往有脑出血病史。" in texts
    again = mesh.tidemill("dataset", "build", str(example))
    assert "medical-reports: unchanged, 8 records" in again.stderr
    assert first["name"] in again.stdout

    lines = (example.parent / "reports.jsonl").read_text(encoding="utf-8").splitlines()
    (example.parent / "reports.jsonl").write_text("\n".join([*lines[:-1], "{broken"]), encoding="utf-8")
    changed = mesh.tidemill("dataset", "build", str(example))
    assert "7 records, 1 refused (`tidemill dlq list --import imports/" in changed.stderr
    assert mesh.json("status")["open_dead_letters"] >= 1

    # A line that was refused may be any record, so none is withdrawn; a line that is gone is.
    (example.parent / "reports.jsonl").write_text("\n".join(lines[:-1]), encoding="utf-8")
    mesh.tidemill("dataset", "build", str(example))
    names = ("medical-reports/versions/1", "medical-reports")
    found = mesh.json("dataset", "diff", *names, "--records", "3")
    assert found["counts"] == dict.fromkeys(found["counts"], 0) | {"removed": 1}
    (gone,) = found["records"]
    assert gone["before"]
    assert not gone["after"]
    assert gone["record_id"] in mesh.tidemill("dataset", "diff", *names, "--records", "1").stdout

    card = mesh.tidemill("dataset", "card", "medical-reports/versions/1").stdout
    assert "| too\\_short | 1 | 50.0% |" in card
    assert "## Attribute department" in card
    page = mesh.scratch / "card.html"
    page.touch(mode=0o666)
    page.chmod(0o666)
    mesh.tidemill("dataset", "card", "medical-reports", "--out", str(page))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_is_wrong_with_a_file_is_named_by_its_line(mesh: Mesh, example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    for wrong, mark, words in (
        (text.replace("min_chars: 8", "min_chars: -8"), "min_chars", "min_chars"),
        (text.replace("reports.jsonl", "nothing.jsonl"), "nothing.jsonl", "nothing.jsonl"),
        (text.replace("datasets/medical-reports", "medical"), "  name: medical", "dataset.name"),
        (text + "capture: {}\nfeedback: {}\n", "feedback: {}", "use `tidemill run`"),
    ):
        (line,) = [number for number, each in enumerate(wrong.splitlines(), 1) if mark in each.partition("#")[0]]
        file = example.with_name("wrong.yaml")
        file.write_text(wrong, encoding="utf-8")
        done = mesh.tidemill("dataset", "build", str(file), check=False)
        assert done.returncode != 0
        assert words in done.stderr
        assert f"wrong.yaml:{line}:" in done.stderr, done.stderr
    # A cycle needs the rest.
    done = mesh.tidemill("run", str(example), "--check", check=False)
    assert done.returncode == 2
    assert "training" in done.stderr
