"""Quarantine and erasure: what is not learnt any more, what learnt from it before, and what is deleted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlparse

import pytest
from sqlalchemy import select

from services.kit.errors import FailedPreconditionError, NotFoundError, UnavailableError
from services.kit.grpc.request_ids import RecordedResponse
from services.kit.pseudonyms import user_pseudonym
from services.kit.storage.requests import SqlRequestLog
from services.pipeline.adapters import tables
from services.pipeline.adapters.exclusion_store import SqlExclusionStore
from services.pipeline.app.exclusions import Exclusions, ExclusionView
from services.pipeline.domain.capture import Capture
from services.pipeline.domain.cycle import CycleState
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.learning import FeedbackUse, Kind, Lesson, chosen
from services.pipeline.domain.review import Action
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.test_learning import NOW
from tests.unit.pipeline.test_reviews import RULES, Desk
from tests.unit.pipeline.test_triggers import World

TENANT = "acme"


class Office:
    """Answers that several people corrected, and a cycle that learnt from them."""

    def __init__(self, harness: Harness) -> None:
        self.harness, self.desk, self.world = harness, Desk(harness), World(harness)
        self.world.clock.time = self.desk.clock.time
        self.engine = harness.captured._engine
        self.exclusions = Exclusions(SqlExclusionStore(self.engine), harness.store, self.desk.clock)
        self.spec = replace(self.world.spec, capture=Capture(review=RULES), feedback=FeedbackUse())

    def correct(self, name: str, author: str, key: str = "k1", text: str = "") -> str:
        """A person corrects an answer; the name of the feedback."""
        self.desk.answers(name, tenant=TENANT)
        draft = replace(self.judgement(name, author), correction=text or f"better {name}", api_key=key)
        (kept,) = self.desk.feedback.record([draft])
        return kept.name

    def judgement(self, name: str, author: str) -> Feedback:
        return Feedback("", f"answers/{name}", 0.0, "", author, self.desk.clock.time, tenant=TENANT)

    async def cycle(self) -> tuple[str, Sequence[str]]:
        """A cycle that writes the lessons and ends: its name, and the answers that it took."""
        cycle = await self.world.start(self.spec, "", ())
        lessons = self.harness.captures.write_lessons(self.spec, cycle.name)
        found = replace(
            cycle.ended(CycleState.SUCCEEDED, self.desk.clock.time),
            dataset_version={"name": "datasets/d/versions/1", "digest": "d" * 64},
            run="runs/r1",
            model_version="models/headlines/versions/7",
            announced=True,
        )
        self.harness.store.update(found)
        return cycle.name, _taken(str(lessons["uri"]))

    def all_text(self) -> str:
        """Everything that the database holds, as text."""
        with self.engine.connect() as connection:
            rows = [connection.execute(select(table)).all() for table in tables.metadata.sorted_tables]
        return repr(rows)


def _taken(uri: str) -> Sequence[str]:
    lines = Path(urlparse(uri).path).read_text().splitlines()
    return [json.loads(line)["record_id"].removeprefix("answers/") for line in lines]


@pytest.fixture
def office(harness: Harness) -> Office:
    return Office(harness)


def _made(view: ExclusionView) -> list[tuple[str, str, str, int]]:
    return [(item.dataset_version, item.run, item.model_version, item.records) for item in view.affected]


async def test_a_quarantine_names_what_learnt_and_ends_when_it_is_lifted(office: Office) -> None:
    for name, author, api_key in (("a", "anna", "k1"), ("b", "ben", "k1"), ("c", "anna", "k2"), ("d", "carl", "k2")):
        office.correct(name, author, api_key)
    first, taken = await office.cycle()
    assert taken == ["a", "b", "c", "d"]
    key = office.exclusions.quarantine("k1", "", "", "", "sends nonsense")
    assert [item.cycle for item in key.affected] == [first]
    assert _made(key) == [("datasets/d/versions/1", "runs/r1", "models/headlines/versions/7", 2)]
    # A second order is the same quarantine.
    assert office.exclusions.quarantine("k1", "", "", "", "again").exclusion == key.exclusion
    _, taken = await office.cycle()
    assert taken == ["c", "d"]
    person = office.exclusions.quarantine("", "", "anna", TENANT, "")
    assert [item.records for item in person.affected] == [1, 2]
    assert person.exclusion.person.startswith("p-")
    # The pseudonym is the one of data sets, so it names the same person.
    assert office.exclusions.quarantine("", person.exclusion.person, "", "", "").exclusion == person.exclusion
    assert (await office.cycle())[1] == ["d"]
    for view in (key, person):
        assert office.exclusions.lift(view.exclusion.name).exclusion.lift_time is not None
    assert (await office.cycle())[1] == ["a", "b", "c", "d"]
    assert {item.exclusion.name for item in office.exclusions.page("", 10)} == {
        key.exclusion.name,
        person.exclusion.name,
    }
    with pytest.raises(NotFoundError, match="exclusions/none"):
        office.exclusions.lift("exclusions/none")


async def test_the_audit_trail_says_who_left_out_whom_and_why_and_names_no_person(office: Office) -> None:
    office.correct("a", "dora", text="of dora")
    await office.cycle()
    key = office.exclusions.quarantine("k1", "", "", "", "sends nonsense", "key:admin")
    office.exclusions.quarantine("k1", "", "", "", "again", "key:other")  # it holds already
    for _ in range(2):
        office.exclusions.lift(key.exclusion.name, "key:admin")
    erased = office.exclusions.erase("dora", TENANT, "", "key:admin")
    assert office.world.trail() == [
        ("key:admin", "feedback.quarantine", "sends nonsense"),
        ("key:admin", "feedback.lift", "A person lifted the quarantine."),
        ("key:admin", "feedback.erase", "A person asked to be forgotten."),
    ]
    (entry,) = office.world.audit.page(erased.exclusion.name, "", 10)
    assert entry.facts == {
        "person": erased.exclusion.person, "answers": "1", "feedback": "1", "lessons": "1", "reviews": "0",
        "ordered": "headlines",
    }  # fmt: skip
    assert "dora" not in office.all_text()


async def test_an_erasure_finds_what_a_user_asked_though_no_one_judged_it(office: Office) -> None:
    key = office.harness.captures.user_key()
    for name, user, tenant in (
        ("never-judged", "dora", TENANT),
        ("judged-by-ben", "dora", TENANT),
        ("of-emil", "emil", TENANT),
        ("of-another-tenant", "dora", "other"),
        ("of-no-one", "", TENANT),
    ):
        pseudonym = user_pseudonym(key, tenant, user)
        assert pseudonym.startswith("u-") is bool(user)
        office.desk.answers(name, tenant=tenant, prompt=f"secret of {name}", asked_by=pseudonym)
    office.correct("judged-by-ben", "ben", text="what ben made of her text")
    await office.cycle()
    erased = office.exclusions.erase("dora", TENANT, "").exclusion
    assert erased.removed == {"answers": 2, "feedback": 1, "lessons": 0, "reviews": 0}
    # Ben's correction had taught her text to a model.
    assert erased.ordered == ("headlines",)
    left = office.all_text()
    for gone in ("secret of never-judged", "secret of judged-by-ben", "what ben made", "dora"):
        assert gone not in left, gone
    for kept in ("secret of of-emil", "secret of of-another-tenant", "secret of of-no-one"):
        assert kept in left, kept
    assert (await office.cycle())[1] == []
    # A second erasure of the same person finds nothing.
    assert set(office.exclusions.erase("dora", TENANT, "").exclusion.removed.values()) == {0}


def test_what_was_on_its_way_when_a_person_was_erased_does_not_come_back(office: Office) -> None:
    """Events of answers arrive late, and again after a kill."""
    dora = user_pseudonym(office.harness.captures.user_key(), TENANT, "dora")
    asked = {"tenant": TENANT, "asked_by": dora}
    office.correct("judged", "dora")
    office.desk.answers("asked", **asked)
    office.correct("of-ben", "ben")
    office.desk.clock.time += timedelta(minutes=1)
    erased = office.exclusions.erase("dora", TENANT, "").exclusion
    assert erased.removed["answers"] == 2
    left = office.all_text()

    before = office.desk.clock.time - timedelta(seconds=1)
    office.desk.answers("judged", tenant=TENANT, answer_time=before)
    office.desk.answers("asked", "late", answer_time=before, **asked)
    # The clock of a gateway may be ahead.
    office.desk.answers("late-by-clock", answer_time=office.desk.clock.time + timedelta(minutes=4), **asked)
    for gone in ("judged", "asked", "late", "late-by-clock"):
        assert f"article {gone}" not in left + office.all_text()
    office.desk.answers("of-emil", tenant=TENANT, answer_time=before)
    # She came back.
    office.desk.answers("new", answer_time=office.desk.clock.time + timedelta(minutes=6), **asked)
    assert {"of-ben", "of-emil", "new"} == {
        item.name.removeprefix("answers/") for item in office.harness.captures.page("", "", 100)
    }


def test_feedback_that_was_on_its_way_to_an_erased_answer_is_left_out(office: Office) -> None:
    office.correct("hers", "dora")
    office.correct("of-ben", "ben")
    office.desk.clock.time += timedelta(minutes=1)
    office.exclusions.erase("dora", TENANT, "")
    now = office.desk.clock.time
    said = [
        replace(office.judgement("of-ben", "dora"), comment="dora, before"),
        replace(office.judgement("of-ben", "dora"), comment="dora, after"),
        replace(office.judgement("of-ben", "ben"), comment="ben, before"),
        replace(office.judgement("of-ben", ""), comment="of no one"),
        replace(office.judgement("hers", "ben"), comment="ben, of hers"),
    ]
    second = timedelta(seconds=1)
    sent = [now - second, now + second, now - second, now - second, now + second]
    kept = office.desk.feedback.record(said, sent=sent)
    assert [item.comment for item in kept] == ["dora, after", "ben, before", "of no one"]
    with pytest.raises(NotFoundError, match="answers/hers was erased"):
        office.desk.feedback.record([said[4]])
    # The names are forgotten when no event can bring the answers back.
    office.harness.captured.expire(now + timedelta(days=31))
    with office.engine.connect() as connection:
        assert connection.execute(select(tables.erased_answers)).all() == []


def test_a_key_of_pseudonyms_reveals_neither_the_salt_nor_a_user(harness: Harness) -> None:
    key = harness.captures.user_key()
    with harness.captured._engine.connect() as connection:
        salt = connection.execute(select(tables.pseudonym_salt.c.salt)).scalar_one()
    assert key not in salt
    assert key == harness.captures.user_key()
    names = {user_pseudonym(key, tenant, user) for tenant, user in (("a", "bc"), ("ab", "c"), ("", "abc"), ("a", "b"))}
    assert len(names) == 4
    assert all(len(name) == 34 for name in names)
    assert user_pseudonym("", "a", "b") == user_pseudonym(key, "a", "") == ""
    # It is not the pseudonym by which a person who judges is known.
    assert not any(name.startswith("p-") for name in names)


class Cleaning:
    """What cleaning is asked to erase; it refuses where the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], str]] = []
        self.errors: list[UnavailableError] = []

    async def erase(self, person: str, records: Sequence[str], request_id: str) -> Sequence[str]:
        self.asked.append((person, list(records), request_id))
        if self.errors:
            raise self.errors.pop()
        return [f"datasets/d/versions/{len(self.asked)}"]


async def test_cleaning_erases_at_once_and_again_after_the_clean_cycle(office: Office) -> None:
    cleaning = Cleaning()
    office.correct("a", "dora")
    await office.cycle()
    office.desk.clock.time += timedelta(minutes=1)
    view = office.exclusions.erase("dora", TENANT, "")
    cleaning.errors = [UnavailableError("a version is being built.")]
    for _ in range(2):
        await office.exclusions.carry_out(cleaning)
    (first,) = office.exclusions.page("", 10)
    assert first.exclusion.rewritten == ("datasets/d/versions/2",)
    assert first.exclusion.complete_time is None
    # Nothing more until the cycle that was ordered has a data set.
    await office.exclusions.carry_out(cleaning)
    assert len(cleaning.asked) == 2
    office.desk.clock.time += timedelta(minutes=1)
    office.world.clock.time = office.desk.clock.time
    await office.world.triggers.step()
    await office.exclusions.carry_out(cleaning)
    assert len(cleaning.asked) == 2
    office.world.end()
    for _ in range(2):
        await office.exclusions.carry_out(cleaning)
    (last,) = office.exclusions.page("", 10)
    assert last.exclusion.rewritten == ("datasets/d/versions/2", "datasets/d/versions/3")
    assert last.exclusion.complete_time == office.desk.clock.time
    person = view.exclusion.person
    assert [item[:2] for item in cleaning.asked] == [(person, ["answers/a"])] * 3
    # A repeat after a lost response is the same request.
    assert cleaning.asked[0][2] == cleaning.asked[1][2] != cleaning.asked[2][2]
    assert [item[1] for item in office.world.trail()][-1] == "feedback.erased"
    assert list(SqlExclusionStore(office.engine).pending()) == []


async def test_an_erasure_of_what_no_cycle_took_is_complete_at_once(office: Office) -> None:
    office.correct("a", "dora")
    office.exclusions.erase("dora", TENANT, "")
    cleaning = Cleaning()
    await office.exclusions.carry_out(cleaning)
    await office.exclusions.carry_out(cleaning)
    assert len(cleaning.asked) == 1
    (view,) = office.exclusions.page("", 10)
    assert view.exclusion.complete_time is not None


async def test_quarantined_corrections_start_no_cycle(office: Office) -> None:
    office.correct("a", "anna")
    assert office.harness.captures.count_corrections(office.spec, None) == 1
    office.exclusions.quarantine("", "", "anna", TENANT, "")
    assert office.harness.captures.count_corrections(office.spec, None) == 0


async def test_erasing_a_person_leaves_nothing_of_them_and_orders_a_clean_cycle(office: Office) -> None:
    secret = "what only dora would say"
    name = office.correct("a", "dora", text=secret)
    office.correct("b", "ben", text="of ben")
    # Both judged this one: it is theirs, and so it goes, with what ben said of it.
    office.correct("both", "ben", text="of ben, too")
    (again,) = office.desk.feedback.record([replace(office.judgement("both", "dora"), comment=secret)])
    log = SqlRequestLog(office.engine, office.desk.clock)
    log.keep("r1", RecordedResponse("0" * 64, f"{name} {secret}".encode()))
    log.keep("r2", RecordedResponse("0" * 64, b"of someone else"))
    first, taken = await office.cycle()
    assert taken == ["a", "b", "both"]
    assert secret in office.all_text()

    view = office.exclusions.erase("dora", TENANT, "asked on Monday")
    assert view.exclusion.removed == {"answers": 2, "feedback": 2, "lessons": 1, "reviews": 0}
    assert [item.cycle for item in view.affected] == [first]
    assert view.exclusion.ordered == ("headlines",)
    left = office.all_text()
    for gone in (secret, "dora", name, again.name, "article a"):
        assert gone not in left, gone
    assert "of ben" in left
    found = log.find("r1"), log.find("r2")
    assert [item and item.response for item in found] == [b"", b"of someone else"]
    # The order is carried out by the task of triggers, once, and after a cycle that began before it.
    running = await office.world.start(office.spec, "", ())
    await office.world.triggers.step()
    assert office.world.cycles[0].name == running.name
    office.world.end()
    for _ in range(2):
        await office.world.triggers.step()
    clean = office.world.cycles[0]
    assert clean.reasons == ("What a person gave was erased.",)
    assert len(office.world.cycles) == 3
    office.world.end()
    _, taken = await office.cycle()
    assert taken == ["b"]
    with pytest.raises(FailedPreconditionError, match="cannot be undone"):
        office.exclusions.lift(view.exclusion.name)


async def test_erasing_a_reviewer_keeps_the_answers_that_others_asked_for(office: Office) -> None:
    office.desk.answers("a", "b", tenant=TENANT)
    office.desk.submit("a", "rita", Action.EDIT, "as rita says")
    view = office.exclusions.erase("rita", TENANT, "")
    assert view.exclusion.removed == {"answers": 0, "feedback": 1, "lessons": 1, "reviews": 1}
    left = office.all_text()
    assert "as rita says" not in left
    assert "article a" in left
    # Nothing had learnt from it, so nothing is ordered.
    assert (view.exclusion.ordered, list(view.affected)) == ((), [])
    # Another tenant's user of the same name is someone else.
    office.correct("c", "rita")
    assert office.exclusions.erase("rita", "other", "").exclusion.removed["feedback"] == 0


def test_one_api_key_counts_up_to_its_cap_whoever_it_names() -> None:
    many = [
        Lesson(
            f"answers/{n}", "models/m/versions/1", Kind.CORRECTION, "p", "g", "t", False, f"p-{n}", "k1", f"f{n}", NOW
        )
        for n in range(10)
    ]
    assert len(chosen(many, FeedbackUse(per_key_cap=3))) == 3
    assert len(chosen(many, FeedbackUse())) == 10
