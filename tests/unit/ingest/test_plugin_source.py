"""Sources of other packages: the example is installed, named in an import and pulled; what is wrong is reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tidemill.ingest.v1 import source_import_pb2

from services.ingest.adapters.plugin_sources import GROUP, AllSources
from services.ingest.adapters.rows import import_of, import_row
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Import, ImportState, SourceSpec
from services.ingest.entrypoints.mapping import spec_from, spec_to
from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from tests.plugins import entry_point, example_installed
from tests.sources import file_sources

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MAILS = """From a Thu Jan  1 00:00:00 2026
Subject: Slow
Date: Thu, 01 Jan 2026 10:00:00 +0000

It takes an hour.

From b Thu Jan  1 00:00:00 2026
Subject: Empty


"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with example_installed(tmp_path / "site", monkeypatch):
        yield


@pytest.fixture
def sources(tmp_path: Path) -> AllSources:
    return AllSources(file_sources(tmp_path))


def spec(config: dict[str, object], name: str = "mbox") -> SourceSpec:
    message = {"source": "mails", "plugin": {"name": name, "config": config}}
    return spec_from(ParseDict(message, source_import_pb2.SourceSpec()))


def pull(sources: AllSources, given: SourceSpec) -> list[RawRecord | Refusal]:
    return list(sources.read(given, sources.survey(given, Interrupt()), Interrupt()))


@pytest.mark.usefixtures("installed")
def test_a_source_of_an_installed_package_is_pulled(tmp_path: Path, sources: AllSources) -> None:
    box = tmp_path / "mails.mbox"
    box.write_text(MAILS)
    given = spec({"path": str(box)})
    record, refused = pull(sources, given)
    assert isinstance(record, RawRecord)
    assert (record.source, record.text, record.attributes) == ("mails", "It takes an hour.", {"subject": "Slow"})
    assert record.event_time == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert record.record_id
    assert isinstance(refused, Refusal)
    assert refused.reason == "EMPTY_TEXT"
    before = sources.survey(given, Interrupt()).digest
    assert before == sources.survey(given, Interrupt()).digest != ""
    box.write_text(MAILS.replace("an hour", "two hours"))
    assert sources.survey(given, Interrupt()).digest != before
    box.unlink()
    with pytest.raises(FailedPreconditionError, match=r"The source mbox failed \(FileNotFoundError"):
        pull(sources, given)


def test_its_spec_survives_contract_and_storage() -> None:
    given = spec({"path": "/mails", "labels": ["a", 1.5]})
    assert spec_from(spec_to(given)) == given
    row: Any = {**import_row(Import("imports/x", given, ImportState.RUNNING, NOW, NOW)), "generation": ""}
    row |= {name: json.loads(json.dumps(row[name])) for name in ("spec", "body")}
    assert import_of(row).spec == given
    other = spec({"path": "/others"})
    assert len({given.origin, other.origin, given.digest, other.digest}) == 4


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("config", "name", "field"),
    [
        ({"path": "/x"}, "mobx", "spec.plugin.name"),
        ({}, "mbox", "spec.plugin.config.path"),
        ({"path": 1}, "mbox", "spec.plugin.config.path"),
        ({"path": "/x", "folder": "y"}, "mbox", "spec.plugin.config.folder"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(
    sources: AllSources, config: dict[str, object], name: str, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        sources.survey(spec(config, name), Interrupt())
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("place", ["no_such_module:Source", "json:NoSuchSource", "json:JSONDecoder"])
def test_a_source_that_cannot_be_loaded_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: AllSources, place: str
) -> None:
    entry_point(tmp_path, monkeypatch, GROUP, f"broken = {place}")
    with pytest.raises(InvalidArgumentError, match="broken") as caught:
        sources.survey(spec({}, "broken"), Interrupt())
    assert caught.value.reason == "PLUGIN_UNUSABLE"
