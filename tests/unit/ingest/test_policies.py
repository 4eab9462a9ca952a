"""What a source says about its records: attributes that they get, and personal data that never reaches Kafka."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from tidemill.ingest.v1.source_import_pb2 import SourceSpec as SpecMessage

from services.ingest.app.ports import Accepted
from services.ingest.app.source_tenants import SourceTenants
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import (
    Import,
    ImportState,
    PushedSource,
    SourcePolicy,
    SourceSpec,
)
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.engine.handling import handling_of
from services.ingest.entrypoints.mapping import source_to, spec_from, spec_to
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError, UnavailableError
from services.kit.grpc.validation import validate
from tests.conftest import OpenDatabase
from tests.examples import examples
from tests.unit.ingest.test_synchronised_sources import Bus, Harness

MAIL = "ann.example@example.com"
EDGE = SourcePolicy(licence="CC-BY-4.0", consent="contract", data_class="private", mask="edge")
TICKETS = SourceSpec("tickets", PushedSource(), policy=EDGE)


class Everything(Bus):
    """Keeps all that reaches the bus, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[RawRecord] = []
        self.refused: list[Refusal] = []

    def accept(self, records: Sequence[Accepted], import_name: str = "", origin: str = "") -> None:
        super().accept(records, import_name, origin)
        self.records += [item.record for item in records]

    def refuse(self, refusals: Sequence[Refusal], import_name: str) -> None:
        self.refused += refusals

    @property
    def seen(self) -> str:
        return repr((self.records, self.refused, self.withdrawn))


@pytest.fixture
def harness(open_service_database: OpenDatabase, tmp_path: Path) -> Harness:
    made = Harness(open_service_database, tmp_path)
    made.bus = Everything()
    return made


def seen(harness: Harness) -> Everything:
    assert isinstance(harness.bus, Everything)
    return harness.bus


def push(harness: Harness, *records: RawRecord) -> Sequence[str]:
    return harness.intake().accept(records)


def test_a_pulled_source_is_masked_before_anything_keeps_it(harness: Harness) -> None:
    spec = replace(harness.spec(), policy=EDGE)
    harness.write(("a", f"write to {MAIL}"), (MAIL, "as an id"), json.dumps({"id": "c", "text": "c", "who": MAIL}))
    first = harness.pull(spec)
    assert (first.state, first.record_count) == (ImportState.SUCCEEDED, 3)
    one, two, three = seen(harness).records
    assert one.text == "write to [EMAIL]"
    assert three.attributes == {
        "who": "[EMAIL]",
        "licence": "CC-BY-4.0",
        "consent": "contract",
        "data_class": "private",
    }
    # The identity stays the same, so that what is edited replaces and what is gone is withdrawn.
    harness.write((MAIL, "edited"), json.dumps({"id": "c", "text": "c", "who": MAIL}))
    second = harness.pull(spec)
    assert (second.differences.added, second.differences.changed, second.differences.gone) == (0, 1, 1)
    assert seen(harness).records[3].record_id == two.record_id
    # The dead letters keep no original of what is not a record, either.
    harness.write((MAIL, "edited"), f'{{"id": "d", "mail": "{MAIL}"}}')
    harness.pull(spec)
    (refused,) = seen(harness).refused
    assert b"[EMAIL]" in refused.content
    assert "ann.example" not in seen(harness).seen


def test_the_policy_is_part_of_what_is_pulled(harness: Harness) -> None:
    harness.write(("a", MAIL))
    harness.pull()
    assert "ann.example" in seen(harness).seen
    second = harness.pull(replace(harness.spec(), policy=EDGE))
    assert (second.differences.changed, seen(harness).held) == (1, ["[EMAIL]"])
    assert harness.create(replace(harness.spec(), policy=EDGE))[1]
    # As in releases without policies.
    assert harness.spec().digest == SourceSpec("s", harness.spec().kind).digest


def test_a_policy_says_how_originals_are_kept_and_whose_records_are(harness: Harness) -> None:
    policy = SourcePolicy(data_class="private", originals="none", tenant="acme")
    harness.write(("a", "pulled"))
    spec = replace(harness.spec(), policy=policy)
    harness.pull(spec)
    assert spec.digest != replace(spec, policy=replace(policy, tenant="")).digest
    harness.declared.put(replace(TICKETS, policy=policy), None)
    push(harness, RawRecord("tickets", "pushed", {}), RawRecord("tickets", "named", {}, tenant="globex"))
    push(harness, RawRecord("other", "free", {}))
    assert [(record.originals, record.tenant) for record in seen(harness).records] == [
        ("none", "acme"),
        ("none", "acme"),
        ("none", "globex"),
        ("", ""),
    ]


def test_a_record_belongs_to_the_tenant_of_the_key_that_sends_it(harness: Harness) -> None:
    mine, other = RawRecord("s", "text", {}), RawRecord("s", "text", {}, tenant="globex")
    harness.intake().accept([mine, replace(mine, tenant="acme")], tenant="acme")
    # Without a tenant, and inside the mesh, a caller may say whose a record is.
    harness.intake().accept([mine, other])
    with pytest.raises(PermissionDeniedError, match=r"records\[1\].tenant is globex") as error:
        harness.intake().accept([mine, other], tenant="acme")
    assert error.value.reason == "OTHER_TENANT"
    records = seen(harness).records
    assert [record.tenant for record in records] == ["acme", "acme", "", "globex"]
    # Whose it is does not make it another record.
    assert len({record.record_id for record in records}) == 1


def test_a_tenant_cannot_replace_the_record_of_another(harness: Harness) -> None:
    """A record is its source and its id: whoever sends an equal id would replace it, or take it from its owner."""
    harness.intake().accept([RawRecord("tickets", "mine", {}, "1")], tenant="acme")
    for forged in (RawRecord("tickets", "forged", {}, "1"), RawRecord("tickets", "mine", {})):
        with pytest.raises(
            PermissionDeniedError, match=r"records\[1\].source is tickets, which belongs to anoth"
        ) as error:
            harness.intake().accept([RawRecord("own", "text", {}), forged], tenant="globex")
        assert (error.value.reason, error.value.metadata) == (
            "SOURCE_OF_OTHER_TENANT",
            {"field": "records[1].source"},
        )
        assert "acme" not in error.value.message
    assert [record.text for record in seen(harness).records] == ["mine"]
    # Its owner may, those without a tenant may, and so it is after a restart.
    harness.intake().accept([RawRecord("tickets", "edited", {}, "1")], tenant="acme")
    harness.intake().accept([RawRecord("tickets", "corrected", {}, "1", tenant="acme")])
    harness.tenants = SourceTenants(harness.source_store, harness.policies)
    with pytest.raises(PermissionDeniedError):
        harness.intake().accept([RawRecord("tickets", "forged", {}, "1")], tenant="globex")
    harness.intake().accept([RawRecord("own", "text", {})], tenant="globex")


def test_tenants_do_not_meet_in_their_request_ids(harness: Harness) -> None:
    intake = harness.intake()
    for tenant in ("", "acme", "globex"):
        for _ in range(2):
            intake.accept([RawRecord(f"of-{tenant or 'none'}", f"text of {tenant}", {})], "request-1", tenant)
    assert len(seen(harness).records) == 3, "a repeat is published once"
    with pytest.raises(InvalidArgumentError, match="request-1"):
        intake.accept([RawRecord("of-acme", "another", {})], "request-1", "acme")


def test_the_policy_of_a_source_decides_whose_it_is(harness: Harness) -> None:
    record = RawRecord("tickets", "text", {}, "1")
    harness.intake().accept([record], tenant="squatter")
    harness.declared.put(replace(TICKETS, policy=SourcePolicy(tenant="acme")), None)
    with pytest.raises(PermissionDeniedError):
        harness.intake().accept([record], tenant="squatter")
    harness.intake().accept([record], tenant="acme")
    # Without the policy, the first is the first.
    harness.declared.delete("sources/tickets")
    harness.intake().accept([record], tenant="squatter")


def test_of_two_tenants_that_begin_at_once_one_has_the_source(harness: Harness) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda number: harness.source_store.first_tenant("new", f"tenant-{number}"), range(32)))
    assert len(found) == 1


def test_sources_that_are_known_are_checked_while_the_database_is_away(harness: Harness) -> None:
    harness.intake().accept([RawRecord("tickets", "text", {})], tenant="acme")

    def away(source: str, tenant: str) -> str:
        raise UnavailableError("The database is unavailable.")

    harness.source_store.first_tenant = away  # type: ignore[method-assign]
    harness.intake().accept([RawRecord("tickets", "text", {})], tenant="acme")
    with pytest.raises(UnavailableError):
        harness.intake().accept([RawRecord("others", "text", {})], tenant="acme")


def test_what_is_pushed_is_masked_from_its_declaration_to_its_end(harness: Harness) -> None:
    mail = RawRecord("tickets", f"I am {MAIL}", {"data_class": "internal"})
    push(harness, mail)
    harness.declared.put(TICKETS, None)
    ids = push(harness, mail, RawRecord("other", MAIL, {}), RawRecord("tickets", "no id", {}))
    before, *after = seen(harness).records
    assert (before.text, before.attributes) == (mail.text, {"data_class": "internal"})
    assert [record.text for record in after] == ["I am [EMAIL]", MAIL, "no id"]
    assert after[0].attributes == {"data_class": "internal", "licence": "CC-BY-4.0", "consent": "contract"}
    assert after[1].attributes == {}
    assert [record.record_id for record in after] == list(ids)
    # A derived identity comes from what is published.
    assert after[0].record_id == replace(after[0], record_id="").identified().record_id
    harness.intake().accept_traced([Accepted(mail)])
    assert seen(harness).records[-1].text == "I am [EMAIL]"
    harness.declared.delete("sources/tickets")
    push(harness, mail)
    assert seen(harness).records[-1].text == mail.text


def test_a_policy_outlives_the_database_and_comes_from_other_processes(harness: Harness) -> None:
    other = Harness(lambda _: harness.store._engine, harness.folder)
    other.declared.put(TICKETS, None)
    harness.declared.orders()
    push(harness, RawRecord("tickets", MAIL, {}))

    def away() -> Any:
        raise UnavailableError("The database is away.")

    harness.policies._store.governed = away  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        harness.declared.orders()
    push(harness, RawRecord("tickets", f"again {MAIL}", {}))
    assert [record.text for record in seen(harness).records] == ["[EMAIL]", "again [EMAIL]"]


def test_no_import_evades_the_policy_of_its_declared_source(harness: Harness) -> None:
    harness.write(("a", MAIL))
    governed = replace(harness.spec(), policy=EDGE)
    harness.declared.put(governed, None)
    done = harness.pull(harness.spec())
    assert (done.spec, seen(harness).held) == (governed, ["[EMAIL]"])
    with pytest.raises(FailedPreconditionError) as refused:
        harness.pull(replace(harness.spec(), policy=SourcePolicy(licence="MIT")))
    assert refused.value.reason == "POLICY_DIFFERS"
    # A declaration without a policy leaves it to the import.
    harness.declared.put(harness.spec(), None)
    assert harness.pull(governed).spec == governed


def test_of_a_pushed_source_nothing_is_collected_or_paused(harness: Harness) -> None:
    view = harness.declared.put(TICKETS, None)
    assert (view.last_import, view.source.due_time) == (None, None)
    assert spec_to(view.source.spec) == source_to(view).spec
    for order in (
        lambda: harness.declared.order("sources/tickets", "", "mesh"),
        lambda: harness.declared.pause("sources/tickets", True),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            order()
        assert refused.value.reason == "PUSHED_SOURCE"
    assert harness.declared.orders() == []
    # Two pipelines that name it share it; it ends, with its policy, with the last.
    for pipeline in ("one", "two"):
        harness.declared.declare(pipeline, [(TICKETS, None)])
    harness.declared.declare("one", [])
    push(harness, RawRecord("tickets", MAIL, {}))
    harness.declared.declare("two", [])
    push(harness, RawRecord("tickets", MAIL, {}))
    assert [record.text for record in seen(harness).records] == ["[EMAIL]", MAIL]


def test_the_contract_knows_every_policy() -> None:
    message = ParseDict({"source": "s", "pushed": {}, "policy": {"mask": "MASK_EDGE", "licence": "MIT"}}, SpecMessage())
    validate(message)
    assert spec_from(message).policy == SourcePolicy(licence="MIT", mask="edge")
    assert spec_to(spec_from(message)) == message
    kept = {"source": "s", "pushed": {}, "policy": {"originals": "ORIGINALS_NONE", "tenant": "acme"}}
    message = ParseDict(kept, SpecMessage())
    assert spec_from(message).policy == SourcePolicy(originals="none", tenant="acme")
    assert spec_to(spec_from(message)) == message
    for wrong in ({"mask": 7}, {"data_class": 7}, {"licence": "x" * 257}, {"originals": 7}, {"tenant": "a b"}):
        with pytest.raises(InvalidArgumentError) as refused:
            validate(ParseDict({"source": "s", "pushed": {}, "policy": wrong}, SpecMessage()))
        assert [violation.field for violation in refused.value.violations] == [f"policy.{next(iter(wrong))}"]


@examples(40)
@given(
    record_id=st.one_of(st.just(""), st.just(MAIL), st.text("abc@.", max_size=9)),
    text=st.text(max_size=40),
    attributes=st.dictionaries(st.sampled_from(["a", "licence"]), st.text(max_size=9)),
)
def test_masking_twice_is_masking_once(record_id: str, text: str, attributes: dict[str, str]) -> None:
    once = handling_of(EDGE).apply(RawRecord("s", f"{text} {MAIL}", attributes, record_id))
    assert handling_of(EDGE).apply(once) == once
    assert MAIL not in repr(once)


def test_an_import_keeps_its_policy_in_the_database(harness: Harness) -> None:
    harness.write(("a", "b"))
    spec = SourceSpec("s", JsonLines(f"{harness.folder}/a.jsonl"), policy=EDGE)
    kept: Import = harness.pull(spec)
    assert kept.spec == spec
