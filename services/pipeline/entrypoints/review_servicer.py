# ruff: noqa: N802 - method names follow the contract
"""ReviewService over gRPC: map in, one call, map out."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from tidemill.common.v1.failure_pb2 import Metric
from tidemill.pipeline.v1 import review_pb2
from tidemill.pipeline.v1 import review_service_pb2 as pb
from tidemill.pipeline.v1 import review_service_pb2_grpc as grpc_stubs

from services.kit.grpc.messages import timestamp
from services.kit.grpc.paging import read_page
from services.kit.ids import ID_PATTERN
from services.kit.threads import in_thread
from services.pipeline.app.reviews import Reviews
from services.pipeline.domain.review import Action, Need, Review, ReviewState
from services.pipeline.entrypoints.mapping import caller_of

_ACTION_MESSAGES: dict[Action, review_pb2.ReviewAction.ValueType] = {
    Action.ACCEPT: review_pb2.REVIEW_ACTION_ACCEPT,
    Action.EDIT: review_pb2.REVIEW_ACTION_EDIT,
    Action.RELABEL: review_pb2.REVIEW_ACTION_RELABEL,
    Action.REJECT: review_pb2.REVIEW_ACTION_REJECT,
    Action.SKIP: review_pb2.REVIEW_ACTION_SKIP,
}
_ACTIONS: dict[int, Action] = {message: action for action, message in _ACTION_MESSAGES.items()}
_STATE_MESSAGES = {
    ReviewState.PENDING: review_pb2.Review.STATE_PENDING,
    ReviewState.TAKEN: review_pb2.Review.STATE_TAKEN,
    ReviewState.DONE: review_pb2.Review.STATE_DONE,
}
_STATES: dict[int, ReviewState] = {message: state for state, message in _STATE_MESSAGES.items()}
_NEEDS = {
    Need.BAD_RATING: review_pb2.Review.NEED_BAD_RATING,
    Need.JUDGES_AT_ODDS: review_pb2.Review.NEED_JUDGES_AT_ODDS,
    Need.LOW_CONFIDENCE: review_pb2.Review.NEED_LOW_CONFIDENCE,
    Need.RANDOM: review_pb2.Review.NEED_RANDOM,
}


class ReviewServicer(grpc_stubs.ReviewServiceServicer):
    """Implements `tidemill.pipeline.v1.ReviewService`."""

    def __init__(self, reviews: Reviews) -> None:
        self._reviews = reviews

    async def ListReviews(self, request: pb.ListReviewsRequest, context: Any) -> pb.ListReviewsResponse:
        """Lists reviews; the page token is the last answer's id."""
        read = in_thread(partial(self._reviews.page, request.model, _STATES.get(request.state)))
        page = await read_page(request, ID_PATTERN, read, lambda item: item.answer.name.removeprefix("answers/"))
        return pb.ListReviewsResponse(reviews=map(self._message, page.items), next_page_token=page.next_token)

    async def TakeReview(self, request: pb.TakeReviewRequest, context: Any) -> pb.TakeReviewResponse:
        """Gives out an answer."""
        found = await asyncio.to_thread(self._reviews.take, request.model, request.reviewer)
        return pb.TakeReviewResponse(review=None if found is None else self._message(found))

    async def SubmitReview(self, request: pb.SubmitReviewRequest, context: Any) -> pb.SubmitReviewResponse:
        """Records a decision."""
        found = await asyncio.to_thread(
            self._reviews.submit,
            request.answer,
            request.reviewer,
            _ACTIONS[request.action],
            request.target,
            request.comment,
            caller_of(context).key,
        )
        return pb.SubmitReviewResponse(review=self._message(found))

    async def MeasureAgreement(self, request: pb.MeasureAgreementRequest, context: Any) -> pb.MeasureAgreementResponse:
        """Measures agreement."""
        found, pending, done = await asyncio.to_thread(self._reviews.agreement, request.model)
        message = review_pb2.ReviewAgreement(count=found.count, observed=found.observed, pending=pending, done=done)
        if found.kappa is not None:
            value, low, high = found.kappa
            kappa = Metric(name="cohen_kappa", value=value, ci_low=low, ci_high=high, sample_size=found.count)
            message.kappa.CopyFrom(kappa)
        return pb.MeasureAgreementResponse(agreement=message)

    def _message(self, review: Review) -> review_pb2.Review:
        answer, state = review.answer, self._reviews.now_state(review)
        message = review_pb2.Review(
            answer=answer.name,
            state=_STATE_MESSAGES[state],
            need=_NEEDS[review.need],
            wanted_decisions=review.wanted,
            decisions=[
                review_pb2.ReviewDecision(
                    reviewer=item.reviewer,
                    decide_time=timestamp(item.time),
                    action=_ACTION_MESSAGES[item.action],
                    target=item.target,
                    comment=item.comment,
                    feedback=item.feedback,
                )
                for item in review.decisions
            ],
            prompt=answer.prompt,
            given=answer.given,
            classification=answer.is_classification,
            score=answer.score,
            model_version=answer.model_version,
        )
        if state is ReviewState.TAKEN and review.lease_end is not None:
            message.reviewer = review.reviewer
            message.lease_end_time.CopyFrom(timestamp(review.lease_end))
        return message
