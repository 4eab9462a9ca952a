"""What the console shows, played by servers that implement the contracts: triggers, reviews, data sets, versions."""

from __future__ import annotations

from typing import Any

from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_service
from tidemill.cleaning.v1 import dataset_pb2
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceServicer
from tidemill.common.v1.failure_pb2 import Metric
from tidemill.inference.v1 import model_pb2
from tidemill.pipeline.v1 import judge_pb2, review_pb2, trigger_pb2
from tidemill.pipeline.v1 import judge_service_pb2 as judge_service
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_service
from tidemill.pipeline.v1 import review_service_pb2 as review_service
from tidemill.pipeline.v1 import trigger_service_pb2 as trigger_service
from tidemill.pipeline.v1.judge_service_pb2_grpc import JudgeServiceServicer
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

    async def PutTrigger(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        return trigger_service.PutTriggerResponse(trigger=self.trigger)

    async def ReportAlerts(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        return trigger_service.ReportAlertsResponse(taken_count=len(request.alerts))

    async def PauseTrigger(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        self.trigger.paused, self.trigger.pause_reason = True, request.reason
        return trigger_service.PauseTriggerResponse(trigger=self.trigger)

    async def ResumeTrigger(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        self.trigger.paused = False
        return trigger_service.ResumeTriggerResponse(trigger=self.trigger)


def dataset_version() -> dataset_pb2.DatasetVersion:
    """A version of `headlines` with drops for three reasons."""
    found = dataset_pb2.DatasetVersion(
        name="datasets/headlines/versions/7",
        state=dataset_pb2.DatasetVersion.STATE_READY,
        records_in=2225,
        train_count=1859,
        holdout_count=200,
        rejected_by_reason={"exact_duplicate": 159, "near_duplicate": 4, "too_short": 3},
        feedback_counts={"correction": 64, "held_back": 9, "people": 17},
        digest="ab" * 32,
    )
    found.create_time.FromSeconds(1_790_000_000)
    found.spec.sources.extend(["bbc", "answers.headlines"])
    found.spec.operators.add(name="fix_unicode")
    found.spec.operators.add(name="length_filter").params.update({"min_chars": 20})
    return found


def record() -> cleaning_service.ExplainRecordResponse:
    """A record whose address was masked, and which is in the training part."""
    found = cleaning_service.ExplainRecordResponse(
        name="sources/bbc/records/r1", record_id="r1", source="bbc", import_name="imports/i1"
    )
    explained = found.datasets.add(
        dataset="datasets/headlines",
        text=CHINESE,
        dataset_version="datasets/headlines/versions/7",
        placement=cleaning_service.DatasetExplanation.PLACEMENT_TRAIN,
    )
    change = explained.effects.add(operator="mask_pii").changes.add(field="text")
    change.edits.add(start=3, end=9, before=HOSTILE, after="[EMAIL]")
    return found


class FakeCleaning(CleaningServiceServicer):
    """One data set with one version, and one record."""

    def __init__(self, seen: Any) -> None:
        self._seen = seen

    async def ListDatasets(self, request: Any, context: Any) -> Any:  # noqa: N802
        return cleaning_service.ListDatasetsResponse(datasets=[self._dataset()])

    async def GetDataset(self, request: Any, context: Any) -> Any:  # noqa: N802
        return cleaning_service.GetDatasetResponse(dataset=self._dataset())

    async def ListDatasetVersions(self, request: Any, context: Any) -> Any:  # noqa: N802
        return cleaning_service.ListDatasetVersionsResponse(dataset_versions=[dataset_version()])

    async def GetDatasetVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        return cleaning_service.GetDatasetVersionResponse(dataset_version=dataset_version())

    async def SampleRejections(self, request: Any, context: Any) -> Any:  # noqa: N802
        records = [
            cleaning_service.RejectedRecord(
                record=f"sources/bbc/records/{number}", detail=f"{number} characters", operator="length_filter"
            )
            for number in range(5)
        ]
        return cleaning_service.SampleRejectionsResponse(
            samples=[cleaning_service.RejectionSample(reason="too_short", records=records)]
        )

    async def ExplainRecord(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._seen.note(request, context)
        return record()

    @staticmethod
    def _dataset() -> dataset_pb2.Dataset:
        return dataset_pb2.Dataset(name="datasets/headlines", spec=dataset_version().spec)


def published() -> model_pb2.ModelVersion:
    """The serving version of `headlines`, with its origin."""
    found = model_pb2.ModelVersion(
        name="models/headlines/versions/3",
        state=model_pb2.ModelVersion.STATE_SERVING,
        precision="int8",
        task="generation",
        run="runs/01jrun",
        dataset_version="datasets/headlines/versions/7",
        size_bytes=171_000_000,
        digest="cd" * 32,
    )
    found.create_time.FromSeconds(1_790_000_000)
    found.integrity.state = model_pb2.Integrity.STATE_VERIFIED
    return found


def answer() -> pipeline_service.CapturedAnswer:
    """An answer of it."""
    return pipeline_service.CapturedAnswer(
        name="answers/01jwriter",
        model_version="models/headlines/versions/3",
        role="serving",
        prompt=HOSTILE,
        text="Rates rise again",
        latency_ms=412.0,
    )


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


def judges() -> list[judge_pb2.Judge]:
    """A judge that may decide, and one that is unavailable."""
    rules = judge_pb2.JudgeSpec(name="short-enough", rules=judge_pb2.JudgeRules(max_chars=80), max_calls_per_day=1000)
    model = judge_pb2.JudgeLanguageModel(address="https://judges.example/v1", model="large", instructions="Be brief.")
    large = judge_pb2.JudgeSpec(name="large", language_model=model, max_calls_per_day=500, max_tokens_per_day=100_000)
    kappa = Metric(name="cohen_kappa", value=0.71, ci_low=0.6, ci_high=0.82, sample_size=120)
    return [
        judge_pb2.Judge(
            name="models/headlines/judges/large",
            spec=large,
            pipeline="pipelines/headlines",
            pending=12,
            failed=2,
            over_limit=3,
            calls_today=500,
            tokens_today=61_000,
            why="People rated 0 of its answers; 50 are needed.",
            error="It did not answer within 30 s.",
        ),
        judge_pb2.Judge(
            name="models/headlines/judges/short-enough",
            spec=rules,
            pipeline="pipelines/headlines",
            rated=1200,
            good_share=0.93,
            common=120,
            observed=0.9,
            kappa=kappa,
            checked=True,
            why="Cohen's kappa with people is 0.71 [0.60, 0.82] on 120 answers; 0.40 is required.",
        ),
    ]


def judge_ratings() -> list[judge_pb2.JudgeRating]:
    """One of each state."""
    answer = "answers/01jwriter"
    rules, large = "models/headlines/judges/short-enough", "models/headlines/judges/large"
    state = judge_pb2.JudgeRating
    return [
        judge_pb2.JudgeRating(answer=answer, judge=large, state=state.STATE_PENDING),
        judge_pb2.JudgeRating(
            answer=answer, judge=rules, state=state.STATE_RATED, rating=-1, reason="It has 120 characters, above 80."
        ),
    ]


class FakeJudges(JudgeServiceServicer):
    """Judges of one model."""

    async def ListJudges(self, request: Any, context: Any) -> Any:  # noqa: N802
        return judge_service.ListJudgesResponse(judges=judges())

    async def ListJudgeRatings(self, request: Any, context: Any) -> Any:  # noqa: N802
        return judge_service.ListJudgeRatingsResponse(ratings=judge_ratings())
