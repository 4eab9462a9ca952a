"""The console's pages of the review queue, from real messages."""

from __future__ import annotations

from typing import Any

import pytest
from tidemill.pipeline.v1.judge_pb2 import Judge, JudgeRating
from tidemill.pipeline.v1.review_pb2 import Review, ReviewAgreement

from gateway.console.pages.judges import rating_of
from gateway.console.pages.judges import state_of as state_of_judge
from gateway.console.pages.reviews import need_of, state_of
from gateway.formats import judge_cost, judge_kind
from services.kit.errors import AbortedError
from tests.integration.gateway.console_peers import judge_ratings, judges, reviews
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, LONG, rendered, text_of


def review_page(review: Review | None, **more: Any) -> str:
    need = need_of(review) if review else ""
    values: dict[str, Any] = {"review": review, "need": need, "labels": [], "error": None, "model": ""}
    return rendered("review.html", **{**values, **more})


def queue_page(found: list[Review], **more: Any) -> str:
    shown = [(review, need_of(review), state_of(review)) for review in found]
    values = {"reviews": shown, "agreement": None, "errors": [], "older": "", "after": "", "may_review": True}
    return rendered("reviews.html", **{**values, **more})


def test_a_writers_answer_can_be_edited() -> None:
    page = review_page(reviews()[0])
    assert [key for key in "aersc123l" if f'data-key="{key}"' in page] == list("aersc")
    # A browser drops the first line feed of a field.
    assert ">\nRates rise again</textarea>" in page


def test_a_classifiers_answer_gets_another_label_by_a_number() -> None:
    page = review_page(reviews()[1], labels=["negative", HOSTILE, *(f"l{n}" for n in range(12))])
    assert [key for key in "aersc123459l" if f'data-key="{key}"' in page] == list("arsc123459")
    assert "52%" in page
    assert "2 people decide" in text_of(page)
    typed = review_page(reviews()[1])
    assert 'value="relabel"' in typed
    assert 'data-key="l"' in typed


def test_enter_in_a_field_decides_nothing() -> None:
    page = review_page(reviews()[0])
    assert page.index("<button disabled hidden>") < page.index('value="accept"')


@pytest.mark.parametrize("text", [HOSTILE, LONG, CHINESE])
def test_what_people_asked_stays_a_text(text: str) -> None:
    review = Review(answer="answers/a", prompt=text, given=text, model_version="models/m/versions/1", reviewer=text)
    assert text_of(review_page(review, error=AbortedError(text))).count(text) >= 4
    assert text_of(queue_page([review])).count(text) >= 2


def test_a_queue_says_how_many_wait_and_how_far_people_agree() -> None:
    agreement = ReviewAgreement(pending=1200, done=40, count=20, observed=0.9)
    agreement.kappa.value, agreement.kappa.ci_low, agreement.kappa.ci_high = 0.78, 0.6, 0.93
    shown = text_of(queue_page(reviews(), agreement=agreement))
    assert "1,200 wait 40 are done 90% agreement on 20 that two people saw 0.78 Cohen’s kappa, 0.60 to 0.93" in shown
    assert "low confidence" in shown


def test_an_empty_queue_is_a_page() -> None:
    assert "Nothing waits" in queue_page([])
    assert "Nothing is left to review." in review_page(None)
    assert "Review the next answer" not in queue_page(reviews(), may_review=False)


def judges_page(found: list[Judge], said: list[JudgeRating]) -> str:
    shown = [(each, state_of_judge(each), judge_kind(each.spec), judge_cost(each)) for each in found]
    ratings = [(each, rating_of(each)) for each in said]
    return rendered("judges.html", judges=shown, ratings=ratings, error=None, older="", after="")


def test_judges_say_whether_they_may_decide_and_what_they_cost() -> None:
    shown = text_of(judges_page(judges(), judge_ratings()))
    assert "Agrees with people on 90% of 120; Cohen’s kappa 0.71, 0.60 to 0.82." in shown
    assert "12 wait, 2 without a verdict, 3 over the limit. 500 of 500 calls today, 61,000 of 100,000 tokens." in shown
    assert "may decide" in shown
    assert "unavailable" in shown
    assert "It has 120 characters, above 80." in shown
    assert "No pipeline names a judge" in judges_page([], [])


@pytest.mark.parametrize("text", [HOSTILE, LONG, CHINESE])
def test_what_a_judge_says_stays_a_text(text: str) -> None:
    judge = Judge(name="models/m/judges/j", why=text, error=text)
    said = JudgeRating(answer="answers/a", judge="models/m/judges/j", state=JudgeRating.STATE_RATED, reason=text)
    assert text_of(judges_page([judge], [said])).count(text) >= 2
