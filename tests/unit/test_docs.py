"""The documents that follow from the code: they are whole, and the schema holds what the loader holds."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from docs.generate.__main__ import ROOT, documents
from docs.generate.events import events
from docs.generate.pipeline import effective_default
from gateway.cli.pipeline_file import load_dataset, load_pipeline
from services.kit.bus.topics import TOPICS
from services.kit.errors import InvalidArgumentError
from tests.shipped import PIPELINES

SCHEMA = ROOT / "pipelines" / "pipeline.schema.json"
OVER_SEVERAL_FIELDS = (
    "exactly one of max_steps",
    "give at least one of",
    "needs capture",
    "needs feedback",
    "need a step",
)
"""Errors of the protos' rules over several fields, which the schema does not have."""


def validator() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def test_each_topic_names_the_events_that_the_protos_put_on_it() -> None:
    carried = {topic.name: set(topic.carries.split(", ")) & set(events()) for topic in TOPICS}
    said = (ROOT / "docs" / "events.md").read_text("utf-8")
    found: dict[str, set[str]] = {topic.name: set() for topic in TOPICS}
    for name in events():
        section = said.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        (topic,) = re.findall(r"Topic `([^`]+)`", section)
        found[topic].add(name)
    assert found == carried


def test_every_variable_that_the_code_reads_is_documented() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "services", "gateway", "infra"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    sources = [ROOT / name for name in tracked] or [
        p for d in ("services", "gateway", "infra") for p in (ROOT / d).rglob("*")
    ]
    read = {
        name
        for path in sources
        if path.suffix == ".py" and path.is_file()
        for name in re.findall(r"\bTIDEMILL_[A-Z][A-Z0-9_]*[A-Z0-9]\b", path.read_text("utf-8"))
    }
    assert read
    # With the table as it would be written now: `make check` reports a table that is behind the settings.
    operations = documents()[ROOT / "docs" / "operations.md"]
    assert sorted(name for name in read if f"`{name}`" not in operations) == []


def test_the_schema_is_a_schema_and_every_pipeline_names_and_keeps_it() -> None:
    assert PIPELINES
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    for path in PIPELINES:
        first = path.read_text().splitlines()[0]
        assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SCHEMA
        assert [error.message for error in validator().iter_errors(yaml.safe_load(path.read_text()))] == []


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(item)


def broken(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A document with one mistake in each place that can have it: a field left out, misspelt, or of another type."""
    for number, mapping in enumerate(mappings(document)):
        for key in mapping:
            for mistake in ("left out", "misspelt", "of another type"):
                changed = copy.deepcopy(document)
                place = list(mappings(changed))[number]
                value = place.pop(key)
                if mistake == "misspelt":
                    place[f"{key}x"] = value
                elif mistake == "of another type":
                    place[key] = [["x"]]
                yield f"{key} is {mistake}", changed


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_the_schema_refuses_what_the_loader_refuses(path: Path, tmp_path: Path) -> None:
    refused, whole = 0, yaml.safe_load(path.read_text())
    load = load_pipeline if "training" in whole else load_dataset
    for mistake, document in broken(whole):
        file = tmp_path / "broken.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        try:
            load(file)
            continue
        except InvalidArgumentError as error:
            if any(rule in str(error) for rule in OVER_SEVERAL_FIELDS):
                continue
        refused += 1
        assert not validator().is_valid(document), mistake
    assert refused > 25


@pytest.mark.parametrize("missing", [("training",), ("gate", "rollout"), ("training", "gate", "rollout")])
def test_training_gate_and_rollout_may_be_absent_together_only(missing: tuple[str, ...]) -> None:
    document = yaml.safe_load((ROOT / "pipelines" / "headlines.yaml").read_text())
    for name in missing:
        del document[name]
    assert validator().is_valid(document) == (len(missing) == 3)


@pytest.mark.parametrize(
    ("comment", "default", "meaning"),
    [
        ("Days that it is kept; 30 when zero. The rest.", "`30`", "Days that it is kept. The rest."),
        ("Chance; 0.05 when left out, no limit when 0.", "`0.05`", "Chance; no limit when 0."),
        ("Minutes; 10080, a week, when left out.", "`10080`, a week", "Minutes."),
        ("Which files; `**/*` when empty.", "`**/*`", "Which files."),
        ("Records; no limit when zero.", "no limit", "Records."),
        ("Steps; 1 %, 5 % and 25 % when empty.", "1 %, 5 % and 25 %", "Steps."),
        ("Margin; it must be better when zero.", "", "Margin; it must be better when zero."),
        ("Seed of every random choice.", "", "Seed of every random choice."),
    ],
)
def test_a_default_is_the_effective_value_that_the_comment_names(comment: str, default: str, meaning: str) -> None:
    assert effective_default(comment) == (default, meaning)


def test_no_field_of_a_pipeline_file_has_another_default_than_its_meaning_says() -> None:
    page = documents()[ROOT / "docs" / "pipeline.md"]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row[2] == "`0`" and re.search(r"\d when (zero|left out)", row[3])] == []
    (kept,) = [row for row in rows if row[0] == "| `keep_days`"]
    assert kept[2:] == ["`30`", "Days that a captured answer is kept. A correction in a data set stays there. |"]


@pytest.mark.parametrize(
    ("operator", "valid"),
    [
        ("exact_dedup", True),
        ({"length_filter": {"min_chars": 1}}, True),
        ({"name": "length_filter", "params": {"min_chars": 1}}, True),
        ({"near_dedup": {}}, True),
        ("exact_dedupe", False),
        ("first_line_to_field", False),
        ({"length_filter": {"min_char": 1}}, False),
        ({"length_filter": {"min_chars": "many"}}, False),
        ({"convert_script": {"conversion": "t2x"}}, False),
        ({"exact_dedup": {}, "near_dedup": {}}, False),
    ],
)
def test_an_operators_parameters_are_checked(operator: object, valid: bool) -> None:
    document = yaml.safe_load((ROOT / "pipelines" / "headlines.yaml").read_text())
    document["dataset"]["operators"] = [operator]
    assert validator().is_valid(document) == valid


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda path: path.name
)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*#?[^)\s]*)\)", path.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in headings}


def test_the_file_tree_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    tree = text.partition("## Files")[2].partition("```\n")[2].partition("```")[0]
    folder, checked = "", 0
    for line in tree.splitlines():
        name = line.strip().partition("  ")[0]
        if name.startswith("tests/") or "<" in name:
            continue
        for part in name.split(", ") if line.startswith("  ") else [name]:
            if not line.startswith("  "):
                folder = part
            pattern = f"{folder}{part}" if line.startswith("  ") else part
            assert list(ROOT.glob(pattern.rstrip("/"))) or list(ROOT.glob(f"{pattern}.py")), pattern
            checked += 1
    assert checked > 30


def places(tree: str) -> Iterator[str]:
    """The paths in a tree of files, each a pattern: an indented line is below the last one that is not."""
    above = ""
    for line in tree.splitlines():
        names = re.split(r"  +", line.strip())[0]
        if not line.startswith(" "):
            above = names if names.endswith("/") else ""
        for name in re.sub("<[^>]*>", "*", names).split(", "):
            yield (above if line.startswith(" ") else "") + name


def test_the_tree_of_files_names_what_there_is() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text().partition("## Files\n\n```\n")[2].partition("```")[0]
    named = list(places(tree))
    assert len(named) > 60
    assert [name for name in named if not any(ROOT.glob(name)) and not any(ROOT.glob(f"{name}.py"))] == []
    packages = {path.parent for top in ("services", "gateway", "infra") for path in (ROOT / top).glob("*/__init__.py")}
    rooms = {str(path.relative_to(ROOT)) for path in packages}
    assert {room for room in rooms if not any(name.startswith(room) for name in named)} == set()


def test_calls_and_events_in_the_pictures_are_those_of_the_contract() -> None:
    pictures = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    named = {word for picture in pictures for word in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", picture)}
    contract = "".join(path.read_text() for path in (ROOT / "protos" / "tidemill").rglob("*.proto"))
    assert {"RecordIngested", "RecordFeedback"} <= named
    assert {word for word in named if not re.search(rf"\b{word}\b", contract)} <= {"CloudEvents"}


@pytest.mark.parametrize(
    ("search", "valid"),
    [
        ({"ranges": {"lora.r": [4, 8], "optimization.learning_rate": {"low": 1e-4, "high": 0.01, "log": True}}}, True),
        ({"ranges": {"lora.r": {"values": [4, 8]}}, "trials": 3, "max_minutes": 0.5, "seed": 7}, True),
        ({"trials": 3}, False),
        ({"ranges": {}}, False),
        ({"ranges": {"lora.r": [4]}, "trials": 0}, False),
        ({"ranges": {"lora.r": {"lowest": 4}}}, False),
        ({"ranges": {"lora.r": 4}}, False),
    ],
)
def test_a_search_keeps_the_schema(search: dict[str, object], valid: bool, tmp_path: Path) -> None:
    whole = yaml.safe_load((ROOT / "pipelines" / "headlines.yaml").read_text()) | {"search": search}
    assert validator().is_valid(whole) == valid
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(whole))
    if valid:
        assert load_pipeline(file).spec.HasField("search")
    else:
        with pytest.raises(InvalidArgumentError):
            load_pipeline(file)


def test_a_file_of_sources_only_keeps_the_schema() -> None:
    whole = yaml.safe_load((ROOT / "pipelines" / "headlines.yaml").read_text())
    assert validator().is_valid({"sources": whole["sources"]})
    assert not validator().is_valid({"sources": whole["sources"], "name": "n"})
    assert not validator().is_valid({"dataset": whole["dataset"]})
