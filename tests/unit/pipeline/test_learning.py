"""What feedback on captured answers teaches, from the judgement to the file that an import reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb

from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError, PermissionDeniedError
from services.masking.masks import MaskSpec
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.capture import Capture, CapturedAnswer
from services.pipeline.domain.cycle import CycleState
from services.pipeline.domain.feedback import Answer, Feedback, Signal
from services.pipeline.domain.learning import FeedbackUse, Kind, Lesson, chosen, source_of
from services.pipeline.entrypoints.mapping import Caller, identified, judgement_from
from tests.unit.pipeline.conftest import Harness
from tests.waiting import eventually

NOW = datetime.now(UTC)
MODEL = "models/headlines"
VERSION = f"{MODEL}/versions/7"
CAPTURE = Capture(keep_days=30)


def written(name: str, text: str = "given", **other: Any) -> CapturedAnswer:
    answer = CapturedAnswer(f"answers/{name}", VERSION, "generate", f"article {name}", text, NOW)
    return replace(answer, **other)


def classified(name: str, label: str = "positive") -> CapturedAnswer:
    return written(name, "", method="predict", label=label)


def service(harness: Harness) -> FeedbackService:
    return FeedbackService(harness.feedback, harness.captures, harness.announcer, SystemClock(), 30, lambda: None)


def say(harness: Harness, name: str, **said: Any) -> Feedback:
    draft = Feedback("", f"answers/{name}", said.pop("rating", 0.0), said.pop("correction", ""), "", NOW)
    (kept,) = service(harness).record([replace(draft, **{"author": "anna", **said})])
    return kept


def lessons(harness: Harness) -> dict[str, tuple[Kind, str]]:
    return {item.answer: (item.kind, item.target) for item in harness.captured.lessons(MODEL)}


@pytest.fixture(autouse=True)
def captured(harness: Harness) -> None:
    harness.captures.put_policy(MODEL, "headlines", CAPTURE)


def test_a_correction_of_a_captured_answer_becomes_a_lesson(harness: Harness) -> None:
    harness.captures.keep([written("a")])
    kept = say(harness, "a", rating=-1, correction="better", api_key="k1")
    (lesson,) = harness.captured.lessons(MODEL)
    assert (lesson.prompt, lesson.given, lesson.target) == ("article a", "given", "better")
    assert (lesson.kind, lesson.model_version, lesson.feedback) == (Kind.CORRECTION, VERSION, kept.name)
    assert lesson.api_key == "k1"
    assert lesson.person.startswith("p-")
    assert "anna" not in repr(lesson)


def test_feedback_may_come_before_its_answer_and_an_answer_twice(harness: Harness) -> None:
    say(harness, "a", correction="better")
    assert lessons(harness) == {}
    harness.captures.keep([written("a")])
    harness.captures.keep([written("a"), written("a")])
    assert lessons(harness) == {"answers/a": (Kind.CORRECTION, "better")}


def test_feedback_that_is_sent_twice_is_one(harness: Harness) -> None:
    harness.captures.keep([written("a")])
    first = say(harness, "a", correction="better", request_id="r")
    assert say(harness, "a", correction="better", request_id="r") == first
    assert len(harness.feedback.page("", "", 10)) == 1


@pytest.mark.parametrize(
    ("said", "taught"),
    [
        ([{"signal": Signal.ACCEPTED}], (Kind.ACCEPTED, "given")),
        ([{"rating": 1}], (Kind.ACCEPTED, "given")),
        ([{"rating": 0.4}], None),
        ([{"rating": -1, "signal": Signal.ACCEPTED}], None),
        ([{"signal": Signal.RETRIED}], None),
        ([{"comment": "hm"}], None),
        ([{"signal": Signal.ACCEPTED}, {"rating": -1}], None),
        ([{"rating": -1}, {"signal": Signal.ACCEPTED}], (Kind.ACCEPTED, "given")),
        ([{"correction": "one"}, {"correction": "two"}, {"rating": 1}], (Kind.CORRECTION, "two")),
        ([{"correction": " given "}], (Kind.ACCEPTED, "given")),
        ([{"correction": "better", "tenant": "other"}], None),
    ],
)
def test_what_judgements_teach(harness: Harness, said: Sequence[dict[str, Any]], taught: Any) -> None:
    # Before the answer: a judgement by another tenant is refused once the answer is known, and never counts.
    for item in said:
        say(harness, "a", **item)
    harness.captures.keep([written("a")])
    assert lessons(harness).get("answers/a") == taught


def test_a_classifier_is_taught_labels(harness: Harness) -> None:
    harness.captures.keep([classified("a"), classified("b")])
    say(harness, "a", label="negative")
    say(harness, "b", signal=Signal.ACCEPTED)
    assert lessons(harness) == {
        "answers/a": (Kind.CORRECTION, "negative"),
        "answers/b": (Kind.ACCEPTED, "positive"),
    }


def test_a_conversation_teaches_nothing(harness: Harness) -> None:
    harness.captures.keep([written("a", conversation=True)])
    say(harness, "a", correction="better")
    assert lessons(harness) == {}


@pytest.mark.parametrize(
    ("name", "said", "reason", "field"),
    [
        ("label", {"correction": "x"}, "NOT_A_TEXT", "correction"),
        ("text", {"label": "x"}, "NOT_A_LABEL", "label"),
        ("text", {"correction": "a\x07b"}, "CONTROL_CHARACTER", "correction"),
        ("unknown", {"comment": "a\x1bb"}, "CONTROL_CHARACTER", "comment"),
        ("text", {"author": "a\nb"}, "CONTROL_CHARACTER", "author"),
        ("text", {"episode": "a\tb"}, "CONTROL_CHARACTER", "episode"),
    ],
)
def test_what_cannot_be_said_is_refused_by_its_field(
    harness: Harness, name: str, said: dict[str, Any], reason: str, field: str
) -> None:
    harness.captures.keep([written("text"), classified("label")])
    with pytest.raises(InvalidArgumentError) as caught:
        say(harness, name, **said)
    assert caught.value.reason == reason
    assert [violation.field for violation in caught.value.violations] == [field]
    assert harness.feedback.page("", "", 10) == []


def test_a_batch_is_recorded_as_a_whole_or_not_at_all(harness: Harness) -> None:
    drafts = [Feedback("", f"answers/{n}", 0, text, "", NOW) for n, text in enumerate(["fine", "a\x00b"])]
    with pytest.raises(InvalidArgumentError) as caught:
        service(harness).record(drafts, "judgements")
    assert [violation.field for violation in caught.value.violations] == ["judgements[1].correction"]
    assert harness.feedback.page("", "", 10) == []
    assert len(service(harness).record(drafts[:1] * 3, "judgements")) == 3


def test_a_batch_with_a_request_id_of_another_judgement_records_nothing(harness: Harness) -> None:
    say(harness, "a", rating=1, request_id="r")
    drafts = [Feedback("", "answers/b", 1, "", "", NOW), Feedback("", "answers/c", 1, "", "", NOW, request_id="r")]
    with pytest.raises(InvalidArgumentError) as caught:
        service(harness).record(drafts, "judgements")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert [item.answer for item in harness.feedback.page("", "", 10)] == ["answers/a"]


def test_a_batch_that_is_repeated_after_a_kill_is_recorded_once(harness: Harness) -> None:
    judgements = [pb.Judgement(answer=f"answers/{n}", rating=1) for n in range(2)]
    request = pb.BatchRecordFeedbackRequest(request_id="x" * 128, judgements=judgements)
    for _ in range(2):
        service(harness).record([judgement_from(item, Caller(), "") for item in identified(request)], "judgements")
    assert len(harness.feedback.page("", "", 10)) == 2
    ids = [item.request_id for item in harness.feedback.page("", "", 10)]
    assert all(len(given) <= 128 for given in ids)


def test_only_the_tenant_of_an_answer_judges_it(harness: Harness) -> None:
    harness.captures.keep([written("a", tenant="acme")])
    with pytest.raises(PermissionDeniedError) as caught:
        say(harness, "a", correction="better", tenant="other")
    assert caught.value.reason == "ANSWER_OF_ANOTHER_TENANT"
    assert say(harness, "a", correction="better", tenant="acme").answer == "answers/a"


def test_personal_data_in_a_correction_is_masked_before_it_is_stored(harness: Harness) -> None:
    harness.captures.put_policy(MODEL, "headlines", Capture(masks=(MaskSpec("mask_pii", {"tokens": {"email": "@"}}),)))
    harness.feedback.remember([Answer("answers/a", VERSION, NOW)])
    assert say(harness, "a", correction="ask jane@example.org", comment="or 13812345678").correction == "ask @"
    # It is not known yet how the texts of this answer's model are to be masked.
    assert say(harness, "b", correction="ask jane@example.org").correction == "ask [EMAIL]"
    assert "jane" not in repr(harness.feedback.page("", "", 10))
    assert "138" not in repr([item.comment for item in harness.feedback.page("", "", 10)])


def test_nothing_is_kept_without_a_rule(harness: Harness) -> None:
    harness.captures.put_policy(MODEL, "headlines", None)
    harness.captures.keep([written("a")])
    assert harness.captures.page("", "", 10) == []


def test_a_rule_is_ended_by_its_own_pipeline_only(harness: Harness) -> None:
    harness.captures.put_policy(MODEL, "another", None)
    assert [policy.model for policy in harness.captures.policies()] == [MODEL]
    harness.captures.put_policy(MODEL, "another", CAPTURE)
    harness.captures.put_policy(MODEL, "headlines", None)
    assert [policy.pipeline for policy in harness.captures.policies()] == ["another"]


def test_answers_are_deleted_when_their_days_are_over_and_lessons_stay(harness: Harness) -> None:
    harness.captures.keep([written("old", answer_time=NOW - timedelta(days=8)), written("new")])
    say(harness, "old", correction="better")
    harness.captures.expire()
    assert len(harness.captures.page("", "", 10)) == 2
    # A shorter time counts for what is kept already.
    harness.captures.put_policy(MODEL, "headlines", Capture(keep_days=7))
    harness.captures.expire()
    assert [item.name for item in harness.captures.page(MODEL, "", 10)] == ["answers/new"]
    assert lessons(harness) == {"answers/old": (Kind.CORRECTION, "better")}


def lesson(number: int, person: str, kind: Kind = Kind.CORRECTION) -> Lesson:
    time = NOW + timedelta(seconds=number)
    name = f"answers/{number:03}"
    return Lesson(name, VERSION, kind, "p", "g", "t", False, person, f"key-{person}", f"feedback/{number}", time)


def test_of_each_person_the_newest_lessons_count() -> None:
    many = [lesson(n, "p-a") for n in range(5)] + [lesson(n, "p-b") for n in range(5, 7)]
    many += [lesson(n, "p-a", Kind.ACCEPTED) for n in range(10, 20)]
    taken = chosen(many, FeedbackUse(corrections=3, accepted=0, per_person_cap=3))
    assert [item.answer for item in taken] == [f"answers/{n:03}" for n in (2, 3, 4, 5, 6)]
    assert chosen(many, FeedbackUse(), {"p-a"}) == chosen(many, FeedbackUse(), {"key-p-a"})
    assert {item.person for item in chosen(many, FeedbackUse(), {"p-a"})} == {"p-b"}


def test_a_long_name_of_a_pipeline_is_shortened_to_a_source() -> None:
    assert source_of("headlines") == "answers.headlines"
    one, two = source_of("x" * 64), source_of("x" * 63 + "y")
    assert len(one) == len(two) == 64
    assert one != two


async def test_a_cycle_imports_what_feedback_teaches(harness: Harness) -> None:
    harness.captures.keep([written("a"), written("b"), written("c")])
    say(harness, "a", correction="better")
    say(harness, "b", rating=1, author="ben")
    training = {**harness.spec.training, "generation": {"target_field": "headline"}}
    spec = replace(harness.spec, training=training, capture=CAPTURE, feedback=FeedbackUse(3, 1))
    scheduler, cycles = harness.scheduler()
    cycle = await cycles.create(spec, "", "")
    await run_to_end(harness, scheduler, cycle.name)
    ended = await cycles.get(cycle.name)
    assert ended.state is CycleState.SUCCEEDED, ended.failure
    order = harness.imports.orders[1]["spec"]
    assert order["source"] == "answers.headlines"
    assert order["may_be_empty"]
    lines = lines_of(order["json_lines"]["uri"])
    by_answer = {line.pop("record_id"): line for line in lines}
    first = by_answer["answers/a"]
    assert (first["text"], first["headline"], first["rejected_answer"]) == ("article a", "better", "given")
    assert (first["feedback_kind"], first["feedback_weight"], first["feedback_version"]) == ("correction", "3", VERSION)
    second = by_answer["answers/b"]
    assert (second["headline"], second["feedback_weight"], second["feedback_kind"]) == ("given", "1", "accepted")
    assert "rejected_answer" not in second
    assert len({line["feedback_person"] for line in lines}) == 2
    assert harness.datasets.put_specs[-1][1]["feedback_sources"] == ["answers.headlines"]
    assert "1 corrections and 1 accepted answers of 2 people" in ended.stage("collect").summary
    assert ended.lessons is not None
    assert ended.lessons["count"] == 2


def lines_of(uri: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(urlparse(uri).path).read_text().splitlines()]


async def run_to_end(harness: Harness, scheduler: Any, name: str) -> None:
    import asyncio

    running = asyncio.create_task(scheduler.run())
    await eventually(lambda: (found := harness.store.get(name)) and found.announced, "the end of the cycle")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_wrong_mask_is_refused_when_the_cycle_is_created(harness: Harness) -> None:
    _, cycles = harness.scheduler()
    spec = replace(harness.spec, capture=Capture(masks=(MaskSpec("mask_names"),)))
    with pytest.raises(InvalidArgumentError) as caught:
        await cycles.create(spec, "", "")
    assert [violation.field for violation in caught.value.violations] == ["spec.capture.masks[0].name"]


async def test_a_source_may_not_be_called_as_feedback_is(harness: Harness) -> None:
    _, cycles = harness.scheduler()
    spec = replace(harness.spec, sources=({"source": "answers.headlines", "text_folder": {"uri": "/x"}},))
    with pytest.raises(InvalidArgumentError) as caught:
        await cycles.create(spec, "", "")
    assert [violation.field for violation in caught.value.violations] == ["spec.sources[0].source"]
