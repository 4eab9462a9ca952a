"""Judges: what rates answers while models serve, what it costs, and how far it agrees with people."""

from __future__ import annotations

from starlette.responses import Response
from tidemill.pipeline.v1.judge_pb2 import Judge, JudgeRating
from tidemill.pipeline.v1.judge_service_pb2 import ListJudgeRatingsRequest, ListJudgesRequest

from gateway.console.calls import may, section
from gateway.console.view import Page, View
from gateway.formats import Status, judge_cost, judge_kind

_NEWEST = 50
_STATES = {
    JudgeRating.STATE_PENDING: Status("waits", "idle"),
    JudgeRating.STATE_FAILED: Status("no rating", "warn"),
    JudgeRating.STATE_OVER_LIMIT: Status("over the limit", "idle"),
}


def state_of(judge: Judge) -> Status:
    """Whether it may be used for decisions."""
    if judge.error:
        return Status("unavailable", "warn")
    return Status("may decide", "good") if judge.checked else Status("not checked", "idle")


def rating_of(rating: JudgeRating) -> Status:
    """What it said, or why it said nothing."""
    if rating.state == JudgeRating.STATE_RATED:
        return Status("good", "good") if rating.rating > 0 else Status("bad", "bad")
    return _STATES.get(rating.state, Status("unknown", "idle"))


async def judges(view: View) -> Response:
    """All judges, and the newest of what they said."""
    listed = await view.services.judge.ListJudges(ListJudgesRequest(page_size=200, page_token=view.next_token))
    may_see = may("JudgeService", "ListJudgeRatings")
    said = await section(view.services.judge.ListJudgeRatings(ListJudgeRatingsRequest(page_size=_NEWEST)))
    return view.page(
        "judges.html",
        judges=[(each, state_of(each), judge_kind(each.spec), judge_cost(each)) for each in listed.judges],
        ratings=[(each, rating_of(each)) for each in said.found.ratings] if said.found else [],
        error=said.error if may_see else None,
        older=listed.next_page_token,
        after=view.next_token,
    )


PAGES = (Page("GET", "/judges", judges),)
