"""What the console shows, played by servers that implement the contracts: triggers, reviews, data sets, versions."""

from __future__ import annotations

from typing import Any

from tidemill.pipeline.v1 import review_pb2, trigger_pb2
from tidemill.pipeline.v1 import review_service_pb2 as review_service
from tidemill.pipeline.v1 import trigger_service_pb2 as trigger_service
from tidemill.pipeline.v1.review_service_pb2_grpc import ReviewServiceServicer
from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceServicer

from services.kit.errors import FailedPreconditionError

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
LONG = "Aufsichtsratsvorsitzendenstellvertreter" * 60
CHINESE = "房间很干净，服务也好，但是早餐种类太少了，性价比一般。"


def trigger() -> trigger_pb2.Trigger:
    """The triggers of `headlines`: it waits, and has fired once."""
    found = trigger_pb2.Trigger(
        pipeline="pipelines/headlines",
        summary="No cycle starts: 12 of 60 corrections are there.",
        checks=[
            trigger_pb2.TriggerCheck(
                condition="corrections", count=12, threshold=60, why="12 of 60 corrections since the last cycle."
            ),
            trigger_pb2.TriggerCheck(condition="schedule", why="The schedule is due on Monday at 03:00 UTC."),
        ],
        holds=["A cycle is running."],
    )
    firing = found.firings.add(cycle="pipelines/headlines/cycles/01jtest", reasons=["60 of 60 corrections."])
    firing.fire_time.FromSeconds(1_790_000_000)
    found.next_schedule_time.FromSeconds(1_800_000_000)
    return found


class FakeTriggers(TriggerServiceServicer):
    """One pipeline with triggers, which can be paused."""

    def __init__(self, seen: Any) -> None:
        self._seen = seen
        self.trigger = trigger()

    async def ListTriggers(self, request: Any, context: Any) -> Any:  # noqa: N802
        return trigger_service.ListTriggersResponse(triggers=[self.trigger])

    async def GetTrigger(self, request: Any, context: Any) -> Any:  # noqa: N802
        return trigger_service.GetTriggerResponse(trigger=self.trigger)

    async def PauseTrigger(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        self.trigger.paused, self.trigger.pause_reason = True, request.reason
        return trigger_service.PauseTriggerResponse(trigger=self.trigger)

    async def ResumeTrigger(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        self.trigger.paused = False
        return trigger_service.ResumeTriggerResponse(trigger=self.trigger)


def reviews() -> list[review_pb2.Review]:
    """A queue: an answer of a writer, and one of a classifier."""
    return [
        review_pb2.Review(
            answer="answers/01jwriter",
            state=review_pb2.Review.STATE_PENDING,
            need=review_pb2.Review.NEED_BAD_RATING,
            wanted_decisions=1,
            prompt=HOSTILE,
            given="Rates rise again",
            model_version="models/headlines/versions/3",
        ),
        review_pb2.Review(
            answer="answers/01jclassifier",
            state=review_pb2.Review.STATE_PENDING,
            need=review_pb2.Review.NEED_LOW_CONFIDENCE,
            wanted_decisions=2,
            prompt=CHINESE,
            given="positive",
            classification=True,
            score=0.52,
            model_version="models/reviews/versions/4",
        ),
    ]


class FakeReviews(ReviewServiceServicer):
    """A queue that gets shorter by each decision."""

    def __init__(self, seen: Any) -> None:
        self._seen = seen
        self.queue = reviews()

    async def ListReviews(self, request: Any, context: Any) -> Any:  # noqa: N802
        return review_service.ListReviewsResponse(reviews=self.queue)

    async def TakeReview(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        return review_service.TakeReviewResponse(review=self.queue[0] if self.queue else None)

    async def SubmitReview(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        found = next((item for item in self.queue if item.answer == request.answer), None)
        if found is None:
            raise FailedPreconditionError("Someone else has decided.", reason="REVIEW_DONE")
        self.queue.remove(found)
        return review_service.SubmitReviewResponse(review=found)

    async def MeasureAgreement(self, request: Any, context: Any) -> Any:  # noqa: N802
        agreement = review_pb2.ReviewAgreement(pending=len(self.queue), done=40, count=20, observed=0.9)
        kappa = agreement.kappa
        kappa.name, kappa.value, kappa.ci_low, kappa.ci_high, kappa.sample_size = "kappa", 0.78, 0.6, 0.93, 20
        return review_service.MeasureAgreementResponse(agreement=agreement)
