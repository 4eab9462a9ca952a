"""The review queue: one answer after the other, by single keys; a decision teaches the next model."""

from __future__ import annotations

from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import GetModelRequest
from tidemill.pipeline.v1 import review_pb2
from tidemill.pipeline.v1.review_pb2 import Review
from tidemill.pipeline.v1.review_service_pb2 import (
    ListReviewsRequest,
    MeasureAgreementRequest,
    SubmitReviewRequest,
    TakeReviewRequest,
)

from gateway.console.calls import may, section, sections
from gateway.console.view import Page, View
from gateway.formats import Status
from gateway.http.errors import status_of
from services.kit.errors import InvalidArgumentError, PermissionDeniedError, TidemillError
from services.kit.ids import new_id

ACTIONS = {
    "accept": review_pb2.REVIEW_ACTION_ACCEPT,
    "edit": review_pb2.REVIEW_ACTION_EDIT,
    "relabel": review_pb2.REVIEW_ACTION_RELABEL,
    "reject": review_pb2.REVIEW_ACTION_REJECT,
    "skip": review_pb2.REVIEW_ACTION_SKIP,
}
_NEEDS = {
    Review.NEED_BAD_RATING: "rated badly",
    Review.NEED_LOW_CONFIDENCE: "low confidence",
    Review.NEED_JUDGES_AT_ODDS: "judges at odds",
    Review.NEED_RANDOM: "random share",
}
_STATES = {
    Review.STATE_PENDING: Status("waits", "idle"),
    Review.STATE_TAKEN: Status("taken", "busy"),
    Review.STATE_DONE: Status("done", "good"),
}


def need_of(review: Review) -> str:
    """Why an answer is in the queue."""
    return _NEEDS.get(review.need, "in the queue")


def state_of(review: Review) -> Status:
    """Where it stands."""
    return _STATES.get(review.state, Status("unknown", "idle"))


def model_of(review: Review) -> str:
    """`models/{model}` of the version that answered."""
    return review.model_version.partition("/versions/")[0]


async def queue(view: View) -> Response:
    """What waits, and how far people agree."""
    listed, measured = await sections(
        view.services.review.ListReviews(
            ListReviewsRequest(state=Review.STATE_PENDING, page_size=50, page_token=view.next_token)
        ),
        view.services.review.MeasureAgreement(MeasureAgreementRequest()),
    )
    errors = [each.error for each in (listed, measured) if each.error]
    if len(errors) == 2 and isinstance(errors[0], PermissionDeniedError):
        raise errors[0]
    return view.page(
        "reviews.html",
        reviews=[(each, need_of(each), state_of(each)) for each in listed.found.reviews] if listed.found else [],
        agreement=measured.found.agreement if measured.found else None,
        errors=errors,
        older=listed.found.next_page_token if listed.found else "",
        after=view.next_token,
        may_review=may("ReviewService", "TakeReview"),
    )


async def take(view: View) -> Response:
    """The answer that needs this person most. Asked again it is the same one, until they decide or its lease ends."""
    return await _next(view, None)


async def _next(view: View, error: TidemillError | None) -> Response:
    request = TakeReviewRequest(request_id=new_id(), model=view.query("model"), reviewer=view.person)
    response = await view.services.review.TakeReview(request)
    review = response.review if response.HasField("review") else None
    labels: list[str] = []
    if review is not None and review.classification:
        found = await section(view.services.inference.GetModel(GetModelRequest(name=model_of(review))))
        labels = [label for label in found.found.model.labels if label != review.given] if found.found else []
    return view.page(
        "review.html",
        status=200 if error is None else status_of(error),
        review=review,
        need=need_of(review) if review is not None else "",
        labels=labels,
        error=error,
        model=view.query("model"),
    )


async def decide(view: View) -> Response:
    """Records a decision, and goes to the next answer."""
    try:
        await view.services.review.SubmitReview(decision(view))
    except PermissionDeniedError:
        raise
    except TidemillError as error:
        # For example: the lease has ended, and another person decided. The next answer is there with the reason.
        return await _next(view, error)
    model = view.query("model")
    return view.go("/reviews/next", note="decided", **({"model": model} if model else {}))


def decision(view: View) -> SubmitReviewRequest:
    """The decision that a form carries: a button is an action, or a label.

    Raises:
        InvalidArgumentError: it is not one.
    """
    form = view.form
    # A button for each known label, or a field where none is known.
    label = form.get("label", "")
    action = "relabel" if label else form.get("action", "")
    if action not in ACTIONS:
        raise InvalidArgumentError("Choose what to do with the answer.", reason="NOT_AN_ACTION")
    target = label or form.get("target", "") if action in ("edit", "relabel") else ""
    if action == "edit" and target == form.get("given"):
        raise InvalidArgumentError("The text is as it was: change it, or accept it.", reason="NOT_CHANGED")
    return SubmitReviewRequest(
        request_id=form.get("request_id", ""),
        answer=f"answers/{form.get('answer', '').removeprefix('answers/')}",
        reviewer=view.person,
        action=ACTIONS[action],
        target=target,
        comment=form.get("comment", "").strip(),
    )


PAGES = (
    Page("GET", "/reviews", queue),
    Page("GET", "/reviews/next", take),
    Page("POST", "/reviews/next", decide),
)
