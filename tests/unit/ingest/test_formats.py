"""Formats follow from the contract: one module for each field of `SourceSpec.kind`, with the fields of its message."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tidemill.ingest.v1.source_import_pb2 import PushedSource
from tidemill.ingest.v1.source_import_pb2 import SourceSpec as SpecMessage

from services.ingest.adapters.rows import import_of, import_row
from services.ingest.app.imports import Imports
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.source_import import Import, ImportState, SourceSpec
from services.ingest.engine.formats import make_format, names
from services.ingest.entrypoints.mapping import spec_from, spec_to
from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate

OTHERS = ("plugin", "pushed")
KINDS = [field for field in SpecMessage.DESCRIPTOR.oneofs_by_name["kind"].fields if field.name not in OTHERS]


def test_the_contract_and_ingest_have_the_same_formats() -> None:
    assert names() == sorted(field.name for field in KINDS)


@pytest.mark.parametrize("field", KINDS, ids=lambda field: field.name)
def test_a_format_has_the_fields_of_its_message_and_survives_contract_and_storage(field: Any) -> None:
    name = field.name
    options = {each.name: each for each in field.message_type.fields}
    made = make_format(name, {"uri": "/data"})
    assert made.field == name
    assert {each.name for each in fields(made)} == set(options)
    samples = {field.CPPTYPE_INT32: 7, field.CPPTYPE_DOUBLE: 0.5, field.CPPTYPE_BOOL: True}
    values: Any = {
        key: ["a", "b"] if each.is_repeated else samples.get(each.cpp_type, "x") for key, each in options.items()
    }
    message = SpecMessage(source="s", max_records=3, **{name: values})
    spec = spec_from(message)
    assert spec_to(spec) == message
    by_default = SourceSpec("s", made)
    assert spec_from(spec_to(by_default)) == by_default
    now = datetime.now(UTC)
    row: Any = import_row(Import("imports/a", spec, ImportState.RUNNING, now, now))
    assert import_of(row).spec == spec


def test_of_a_pushed_source_there_is_nothing_to_pull() -> None:
    message = SpecMessage(source="tickets", pushed=PushedSource())
    validate(message)
    assert spec_to(spec_from(message)) == message
    nothing: Any = None
    with pytest.raises(InvalidArgumentError) as refused:
        Imports(nothing, nothing, nothing, nothing).create(spec_from(message), "", "", Interrupt())
    assert [each.field for each in refused.value.violations] == ["spec.pushed"]
    for wrong in ({"max_records": 3}, {"may_be_empty": True}, {"collect": {"every_minutes": 5}}):
        with pytest.raises(InvalidArgumentError, match="nothing is pulled"):
            validate(ParseDict({"source": "tickets", "pushed": {}, **wrong}, SpecMessage()))


def test_an_origin_is_what_is_read_and_how_it_is_read() -> None:
    specs = [("mail_folder", "**/*"), ("mail_folder", "**/*.eml"), ("text_folder", "**/*")]
    made = [SourceSpec("mail", make_format(name, {"uri": "/mail", "pattern": pattern})) for name, pattern in specs]
    assert len({spec.origin for spec in made}) == 3
