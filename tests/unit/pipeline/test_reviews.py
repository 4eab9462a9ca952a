"""The review queue: what is in it, who gets what, and what a decision becomes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kit.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TidemillError,
)
from services.pipeline.adapters.review_store import SqlReviewStore
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.app.reviews import Reviews
from services.pipeline.domain.capture import Capture, CapturedAnswer, ReviewRules
from services.pipeline.domain.feedback import Answer, Feedback
from services.pipeline.domain.learning import Kind
from services.pipeline.domain.review import Action, Need, ReviewState
from services.pipeline.engine.agreement import agreement
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.test_triggers import SetClock

MODEL, VERSION = "models/headlines", "models/headlines/versions/7"
RULES = ReviewRules(random_share=1.0, low_confidence=0.7)


class Desk:
    """The use cases over a real database."""

    def __init__(self, harness: Harness) -> None:
        self.harness, self.clock = harness, SetClock()
        # Captured answers expire by the database's own time of answers.
        self.clock.time = datetime.now(UTC)
        self.feedback = FeedbackService(
            harness.feedback, harness.captures, harness.announcer, self.clock, 30, lambda: None
        )
        self.store = SqlReviewStore(harness.captured._engine)
        self.reviews = Reviews(self.store, self.feedback, self.clock)
        self.rules(RULES)

    def rules(self, rules: ReviewRules | None) -> None:
        self.harness.captures.put_policy(MODEL, "headlines", Capture(keep_days=30, review=rules))

    def answers(self, *names: str, **other: Any) -> None:
        for name in names:
            answer = CapturedAnswer(f"answers/{name}", VERSION, "generate", f"article {name}", "given", self.clock.time)
            answer = replace(answer, **other)
            self.harness.feedback.remember([Answer(answer.name, VERSION, answer.answer_time)])
            self.harness.captures.keep([answer])

    def label(self, name: str, score: float) -> None:
        self.answers(name, method="predict", text="", label="positive", score=score)

    def rate(self, name: str, rating: float, **said: Any) -> None:
        self.feedback.record(
            [Feedback("", f"answers/{name}", rating, said.pop("correction", ""), "user", self.clock.time)]
        )

    def take(self, reviewer: str) -> str:
        """The id of the answer that a person gets; empty if none is left."""
        found = self.reviews.take(MODEL, reviewer)
        return "" if found is None else found.answer.name.removeprefix("answers/")

    def submit(self, name: str, reviewer: str, action: Action, target: str = "") -> ReviewState:
        review = self.reviews.submit(f"answers/{name}", reviewer, action, target, "", "k1")
        return self.reviews.now_state(review)

    def lessons(self) -> dict[str, tuple[Kind, str]]:
        return {item.answer: (item.kind, item.target) for item in self.harness.captured.lessons(MODEL)}


@pytest.fixture
def desk(harness: Harness) -> Desk:
    return Desk(harness)


def test_the_queue_holds_what_needs_it_and_gives_the_worst_first(desk: Desk) -> None:
    desk.rules(ReviewRules(low_confidence=0.7))
    desk.label("sure", 0.9)
    desk.label("unsure", 0.6)
    desk.answers("fine", "bad", "corrected", "chat", conversation=False)
    desk.rate("bad", -1)
    desk.rate("corrected", -1, correction="better")
    desk.rate("fine", 1)
    found = desk.reviews.page(MODEL, None, "", 10)
    assert {item.answer.name: item.need for item in found} == {
        "answers/bad": Need.BAD_RATING,
        "answers/unsure": Need.LOW_CONFIDENCE,
    }
    assert [desk.take(name) for name in ("anna", "ben", "carl")] == ["bad", "unsure", ""]
    # A rating that comes before its answer counts, too, and a need may grow.
    desk.rate("late", -1)
    desk.rules(RULES)
    desk.answers("late", "random")
    desk.rate("random", -1)
    needs = {item.answer.name: item.need for item in desk.reviews.page(MODEL, None, "", 10)}
    assert needs["answers/late"] is needs["answers/random"] is Need.BAD_RATING


def test_without_rules_nothing_is_queued_and_a_conversation_never_is(desk: Desk) -> None:
    desk.answers("chat", conversation=True)
    desk.rules(None)
    desk.answers("a")
    desk.rate("a", -1)
    assert desk.reviews.page("", None, "", 10) == []


def test_a_random_share_is_about_that_share_and_the_same_for_all(desk: Desk) -> None:
    desk.rules(ReviewRules(random_share=0.25, double_share=0.5))
    desk.answers(*(f"n{number}" for number in range(200)))
    found = desk.reviews.page(MODEL, None, "", 500)
    assert 30 <= len(found) <= 70
    assert 0.3 <= sum(item.wanted == 2 for item in found) / len(found) <= 0.7


def test_two_people_never_have_the_same_answer(desk: Desk) -> None:
    names = [f"n{number:02}" for number in range(12)]
    desk.answers(*names)
    with ThreadPoolExecutor(6) as people:
        taken = list(people.map(desk.take, [f"person{number}" for number in range(12)]))
    assert sorted(taken) == names
    assert desk.take("one more") == ""
    # Who asks again has the same answer, and no one else may decide about it.
    assert desk.take("person3") == taken[3]
    with pytest.raises(AbortedError, match="was taken by person3"):
        desk.submit(taken[3], "person4", Action.ACCEPT)
    # An answer whose lease has ended is free, and the one who had it may still decide until someone else takes it.
    desk.clock.time += timedelta(minutes=31)
    assert desk.take("late") in names
    assert desk.submit(taken[3], "person3", Action.ACCEPT) is ReviewState.DONE


def test_each_decision_becomes_what_it_means(desk: Desk) -> None:
    desk.answers("accept", "edit", "reject", "skip")
    desk.label("relabel", 0.5)
    desk.submit("accept", "anna", Action.ACCEPT)
    desk.submit("edit", "anna", Action.EDIT, "call +49 170 1234567 for a better text")
    desk.submit("reject", "anna", Action.REJECT)
    desk.submit("relabel", "anna", Action.RELABEL, "negative")
    assert desk.submit("skip", "anna", Action.SKIP) is ReviewState.PENDING
    found = desk.lessons()
    assert found["answers/accept"] == (Kind.ACCEPTED, "given")
    assert found["answers/relabel"] == (Kind.CORRECTION, "negative")
    assert set(found) == {"answers/accept", "answers/edit", "answers/relabel"}
    kind, target = found["answers/edit"]
    # Masked as every correction is, in the queue as well.
    assert kind is Kind.CORRECTION
    assert "1234567" not in target
    review = desk.store.get("answers/edit")
    assert review is not None
    (decision,) = review.decisions
    assert (decision.reviewer, decision.action, decision.time) == ("anna", Action.EDIT, desk.clock.time)
    assert decision.target == target
    assert decision.feedback.startswith("feedback/")
    # A skip is for others.
    assert desk.take("anna") == ""
    assert desk.take("ben") == "skip"


def test_a_reviewer_judges_answers_of_any_tenant(desk: Desk) -> None:
    desk.answers("a", tenant="acme")
    desk.submit("a", "anna", Action.EDIT, "better")
    assert desk.lessons() == {"answers/a": (Kind.CORRECTION, "better")}


@pytest.mark.parametrize(
    ("decide", "error", "said"),
    [
        (lambda desk: desk.submit("none", "anna", Action.ACCEPT), NotFoundError, "answers/none"),
        (
            lambda desk: desk.submit("text", "anna", Action.RELABEL, "x"),
            InvalidArgumentError,
            "writes; edit its",
        ),
        (lambda desk: desk.submit("label", "anna", Action.EDIT, "x"), InvalidArgumentError, "classifies; relabel its"),
        (lambda desk: desk.submit("done", "anna", Action.ACCEPT), FailedPreconditionError, "anna has decided about"),
        (lambda desk: desk.submit("done", "ben", Action.ACCEPT), FailedPreconditionError, "is reviewed already"),
        (lambda desk: desk.submit("text", "anna", Action.EDIT, "a\x00b"), InvalidArgumentError, "control character"),
    ],
)
def test_what_cannot_be_decided_is_refused(
    desk: Desk, decide: Callable[[Desk], object], error: type[TidemillError], said: str
) -> None:
    desk.answers("text", "done")
    desk.label("label", 0.5)
    desk.submit("done", "anna", Action.ACCEPT)
    with pytest.raises(error, match=said):
        decide(desk)


def test_a_crash_between_feedback_and_decision_records_one_judgement(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.answers("a")

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(desk.store, "decide", killed)
        with pytest.raises(RuntimeError):
            desk.submit("a", "anna", Action.EDIT, "better")
    desk.submit("a", "anna", Action.EDIT, "better")
    assert len(desk.feedback.page("", "", 10)) == 1


def test_a_share_is_reviewed_by_two_people_and_their_agreement_is_measured(desk: Desk) -> None:
    desk.rules(ReviewRules(random_share=1.0, double_share=1.0))
    for number in range(20):
        desk.label(f"n{number:02}", 0.5)
        assert desk.submit(f"n{number:02}", "anna", Action.ACCEPT) is ReviewState.PENDING
    # Whoever decided does not get it again.
    assert desk.take("anna") == ""
    for number in range(20):
        wrong = number % 2 == 0
        action = Action.RELABEL if wrong else Action.ACCEPT
        assert desk.submit(f"n{number:02}", "ben", action, "negative" if wrong else "") is ReviewState.DONE
    found, pending, done = desk.reviews.agreement(MODEL)
    assert (found.count, found.observed, pending, done) == (20, 0.5, 0, 20)
    # Half of the answers agree, and by chance half would, too.
    assert found.kappa is not None
    assert found.kappa[0] == pytest.approx(0)


def test_kappa_is_cohens() -> None:
    # By hand: 0.7 observed, 0.5 by chance of the margins. 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no.
    table = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = agreement(table)
    assert found.observed == 0.7
    assert found.kappa is not None
    value, low, high = found.kappa
    assert value == pytest.approx(0.4)
    assert 0.1 < low < value < high < 0.7
    assert agreement([("y", "y")] * 5).kappa is None
    assert agreement([]).count == 0


def test_an_expired_answer_leaves_the_queue(desk: Desk) -> None:
    desk.answers("a")
    assert desk.reviews.agreement("")[1] == 1
    desk.harness.captured.expire(desk.clock.time + timedelta(days=31))
    assert desk.take("anna") == ""
    assert desk.reviews.agreement("")[1] == 0


def test_reviews_are_listed_by_state(desk: Desk) -> None:
    desk.answers("a", "b", "c")
    desk.submit("a", "anna", Action.REJECT)
    assert desk.take("ben") == "c"

    def names(state: ReviewState | None, before: str = "") -> list[str]:
        return [item.answer.name[-1] for item in desk.reviews.page("", state, before, 10)]

    found = [names(state) for state in (ReviewState.DONE, ReviewState.TAKEN, ReviewState.PENDING, None)]
    assert found == [["a"], ["c"], ["b"], ["c", "b", "a"]]
    assert names(None, "b") == ["a"]
