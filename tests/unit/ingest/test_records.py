"""Records: identity, limits, and that the limits are those of the contract."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tidemill.ingest.v1.record_pb2 import Record

from services.ingest.domain.record import (
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_TEXT_BYTES,
    RawRecord,
    RecordRefusedError,
    check_record,
)
from services.ingest.entrypoints.mapping import record_from
from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import violations_of

GOOD = RawRecord("bbc", "text", {"label": "a"}, "r1")

records = st.builds(
    RawRecord,
    source=st.one_of(
        st.sampled_from(["bbc", "a.b-c_d", "", "Upper", ".dot", "x" * 64, "x" * 65, "a\n"]), st.text(max_size=4)
    ),
    text=st.one_of(st.sampled_from(["", "x" * MAX_TEXT_BYTES, "é" * MAX_TEXT_BYTES]), st.text(max_size=4)),
    attributes=st.one_of(
        st.dictionaries(st.text(st.sampled_from("aZ_0-\n"), max_size=3), st.text(max_size=3), max_size=3),
        st.sampled_from(
            [
                {f"a{i}": "x" for i in range(MAX_ATTRIBUTES + 1)},
                {"a": "x" * (MAX_ATTRIBUTE_BYTES + 1)},
                {"a": "é" * (MAX_ATTRIBUTE_BYTES // 2)},
                {"a" * 64: ""},
                {"a" * 65: ""},
            ]
        ),
    ),
    record_id=st.one_of(st.sampled_from(["", "a:b/c.d-e_f", "x" * 128, "x" * 129, "a b", "a\n"]), st.text(max_size=4)),
)


@given(records)
@example(GOOD)
def test_the_limits_are_those_of_the_contract(record: RawRecord) -> None:
    message = Record(source=record.source, text=record.text, attributes=record.attributes, record_id=record.record_id)
    try:
        check_record(record)
        accepted = True
    except RecordRefusedError:
        accepted = False
    # RE2's `$` is the very end; that a trailing line break is refused is what the domain says too.
    assert accepted == (not violations_of(message))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": ""}, "EMPTY_TEXT"),
        ({"text": "x" * (MAX_TEXT_BYTES + 1)}, "TEXT_TOO_LONG"),
        ({"text": "a\ud800b"}, "NOT_UNICODE"),
        ({"attributes": {"a": "\udfff"}}, "NOT_UNICODE"),
        ({"attributes": {"A": "x"}}, "INVALID_ATTRIBUTE_NAME"),
        ({"attributes": {f"a{i}": "x" for i in range(65)}}, "TOO_MANY_ATTRIBUTES"),
        ({"attributes": {"a": "x" * 16_385}}, "ATTRIBUTE_TOO_LONG"),
        ({"record_id": "a b"}, "INVALID_ID"),
        ({"source": "A"}, "INVALID_SOURCE"),
    ],
)
def test_a_refusal_says_why(change: dict[str, object], reason: str) -> None:
    with pytest.raises(RecordRefusedError) as caught:
        check_record(replace(GOOD, **change))  # type: ignore[arg-type]  # by name
    assert caught.value.reason == reason


def test_identity_comes_from_source_and_content_and_not_from_the_order_of_attributes() -> None:
    one = RawRecord("s", "t", {"a": "1", "b": "2"}).identified()
    two = RawRecord("s", "t", {"b": "2", "a": "1"}).identified()
    assert one.record_id == two.record_id
    assert one.record_id.startswith("rec_")
    others = [RawRecord("z", "t", one.attributes), RawRecord("s", "u", one.attributes), RawRecord("s", "t", {"a": "1"})]
    assert len({one.record_id, *(other.identified().record_id for other in others)}) == 4
    assert GOOD.identified().record_id == "r1"


def test_a_time_beyond_the_calendar_is_refused() -> None:
    message = Record(source="s", text="t")
    message.event_time.seconds = 10**14
    with pytest.raises(InvalidArgumentError) as caught:
        record_from(message, "records[3]")
    assert caught.value.reason == "INVALID_TIME"
    assert [violation.field for violation in caught.value.violations] == ["records[3].event_time"]
