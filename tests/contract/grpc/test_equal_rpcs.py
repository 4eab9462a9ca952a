"""Equal RPCs behave equally in every service (docs/adr/0014); the tests find them by the services' descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning
from tidemill.inference.v1 import inference_service_pb2 as inference
from tidemill.ingest.v1 import dead_letter_service_pb2 as dead_letter
from tidemill.ingest.v1 import ingest_service_pb2 as ingest
from tidemill.ingest.v1 import source_service_pb2 as source_service
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.pipeline.v1 import exclusion_service_pb2 as exclusion
from tidemill.pipeline.v1 import judge_service_pb2 as judge_service
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline
from tidemill.pipeline.v1 import review_service_pb2 as review
from tidemill.pipeline.v1 import rollout_service_pb2 as rollout
from tidemill.pipeline.v1 import trigger_service_pb2 as trigger
from tidemill.pipeline.v1.review_pb2 import REVIEW_ACTION_ACCEPT
from tidemill.pipeline.v1.trigger_pb2 import Alert
from tidemill.telemetry.v1 import telemetry_service_pb2 as telemetry
from tidemill.training.v1 import training_service_pb2 as training

from services.kit.ids import new_id
from tests.conftest import OpenDatabase
from tests.contract.grpc.services import Services

PROTOS = Path(__file__).resolve().parents[3] / "protos"
MODULES = [
    import_module(".".join(path.relative_to(PROTOS).with_suffix("").parts) + "_pb2")
    for path in sorted(PROTOS.glob("tidemill/**/*_service.proto"))
]
METHODS: dict[str, MethodDescriptor] = {
    method.name: method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_method_has_a_name_of_its_own() -> None:
    services = [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]
    assert len(METHODS) == sum(len(service.methods) for service in services)


class Mesh:
    """Calls by a method's name, which no two services share."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def call(self, method: str, request: Message) -> Any:
        """Starts a call, to be awaited or iterated over."""
        found = METHODS[method]
        channel = self.services.channels[found.containing_service.full_name]
        kind = channel.unary_stream if found.server_streaming else channel.unary_unary
        path = f"/{found.containing_service.full_name}/{method}"
        serialize: Any = type(request).SerializeToString
        response: Any = message_factory.GetMessageClass(found.output_type)
        return kind(path, request_serializer=serialize, response_deserializer=response.FromString)(request, timeout=60)

    async def refusal(self, method: str, request: Message) -> tuple[str, error_details_pb2.ErrorInfo, list[str]]:
        """Code, reason with metadata, and fields of the error that a call ends with."""
        try:
            if METHODS[method].server_streaming:
                async for _ in self.call(method, request):
                    pass
            else:
                await self.call(method, request)
        except grpc.aio.AioRpcError as error:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            status = rpc_status.from_call(error)  # type: ignore[arg-type]
            for detail in status.details if status is not None else ():
                detail.Unpack(info)
                detail.Unpack(bad)
            return error.code().name, info, [violation.field for violation in bad.field_violations]
        raise AssertionError(f"{method} took {request}")


@pytest.fixture
async def mesh(tmp_path: Path, open_service_database: OpenDatabase) -> AsyncIterator[Mesh]:
    services = Services(tmp_path, open_service_database)
    async with services.started():
        yield Mesh(services)


# How to create each resource: the request, which differs by its number, and the resource's field in the response.


def _source(mesh: Mesh, number: int) -> dict[str, Any]:
    return {"source": f"s{number}", "json_lines": {"uri": mesh.services.lines(number)}}


def _training(number: int) -> dict[str, Any]:
    return {
        "dataset": {"name": "datasets/d/versions/1", "uri": "file:///d", "digest": "0" * 64},
        "base_model": "base",
        "model_name": f"m{number}",
        "text_classification": {"label_field": "label", "max_input_tokens": 64},
        "lora": {"r": 8, "alpha": 16},
        "optimization": {"max_steps": 2, "batch_size": 1, "learning_rate": 0.1},
        "compression": {"variants": ["int8"]},
    }


def create_import(mesh: Mesh, number: int) -> Message:
    return ParseDict({"spec": _source(mesh, number)}, ingest.CreateImportRequest())


def put_source(mesh: Mesh, number: int) -> source_service.PutSourceRequest:
    return ParseDict({"spec": _source(mesh, number)}, source_service.PutSourceRequest())


def declare(mesh: Mesh, number: int) -> source_service.DeclareSourcesRequest:
    spec = {**_source(mesh, number), "collect": {"every_minutes": 60}}
    order = {"pipeline": f"pipelines/loop{number}", "specs": [spec]}
    return ParseDict(order, source_service.DeclareSourcesRequest())


def build(_: Mesh, number: int) -> Message:
    order = {"dataset": "datasets/d", "awaited_imports": [{"name": f"imports/i{number}"}]}
    return ParseDict(order, cleaning.BuildDatasetVersionRequest())


def create_run(_: Mesh, number: int) -> Message:
    return ParseDict({"spec": _training(number)}, training.CreateRunRequest())


def create_trial(number: int) -> Message:
    order = {"spec": _training(number), "trial": {"study": "s", "validation_share": 0.1}}
    return ParseDict(order, training.CreateTrialRequest())


def create_cycle(mesh: Mesh, number: int) -> Message:
    spec = {
        "name": f"loop{number}",
        "sources": [_source(mesh, number)],
        "dataset": {"name": f"datasets/d{number}"},
        "training": _training(number),
        "gate": {},
        "rollout": {"model": f"models/m{number}"},
    }
    return ParseDict({"spec": spec}, pipeline.CreateCycleRequest())


def put_trigger(mesh: Mesh, number: int) -> trigger.PutTriggerRequest:
    request = trigger.PutTriggerRequest()
    request.spec.CopyFrom(create_cycle(mesh, number).spec)  # type: ignore[attr-defined]
    request.spec.triggers.new_records = 10 + number
    return request


def decide(answer: str) -> review.SubmitReviewRequest:
    return review.SubmitReviewRequest(answer=answer, reviewer="ben", action=REVIEW_ACTION_ACCEPT)


def put(number: int, name: str = "datasets/d") -> cleaning.PutDatasetRequest:
    return ParseDict({"name": name, "spec": {"sources": [f"s{number}"]}}, cleaning.PutDatasetRequest())


def publish(mesh: Mesh, number: int) -> inference.PublishModelRequest:
    made = mesh.services.build(number)
    return inference.PublishModelRequest(model="models/m", artifact_uri=made.artifact_uri, digest=made.digest)


def route(model: str, version: int) -> inference.SetRouteRequest:
    entry = {"version": version, "role": "VERSION_ROLE_SERVING", "weight": 100}
    return ParseDict({"model": model, "entries": [entry], "etag": "*"}, inference.SetRouteRequest())


def promote(model: str) -> inference.PromoteVersionRequest:
    return inference.PromoteVersionRequest(model=model, version=2)


def report_alert(number: int) -> trigger.ReportAlertsRequest:
    alert = Alert(name="Drift", pipeline="pipelines/loop60", fingerprint=f"f{number}")
    alert.start_time.FromSeconds(1_790_000_000 + number)
    return trigger.ReportAlertsRequest(alerts=[alert])


def judge(number: int) -> pipeline.RecordFeedbackRequest:
    return pipeline.RecordFeedbackRequest(answer=f"answers/a{number}", rating=1)


@dataclass(frozen=True)
class Work:
    """A long-running resource: how it is created, and its field in responses."""

    create: str
    request: Callable[[Mesh, int], Any]
    field: str
    noun: str

    async def begin(self, mesh: Mesh, number: int) -> Any:
        """Creates a resource."""
        return getattr(await mesh.call(self.create, self.request(mesh, number)), self.field)

    async def again(self, mesh: Mesh, name: str) -> Any:
        """Reads the resource."""
        method = f"Get{self.noun}"
        request: Any = message_factory.GetMessageClass(METHODS[method].input_type)
        return getattr(await mesh.call(method, request(name=name)), self.field)

    def end(self, mesh: Mesh, name: str) -> None:
        """Lets the work end."""
        kind = "".join(f"_{c.lower()}" if c.isupper() else c for c in self.noun).lstrip("_")
        mesh.services.ends[kind](name)


WORKS = {
    work.noun: work
    for work in (
        Work("CreateImport", create_import, "source_import", "Import"),
        Work("BuildDatasetVersion", build, "dataset_version", "DatasetVersion"),
        Work("CreateRun", create_run, "run", "Run"),
        Work("CreateCycle", create_cycle, "cycle", "Cycle"),
    )
}


async def prepare(mesh: Mesh) -> None:
    """Creates what the long-running resources depend on."""
    await mesh.call("PutDataset", put(0))


def named(verb: str) -> set[str]:
    """Methods of all services whose name begins with a verb."""
    return {name for name in METHODS if name.startswith(verb)}


# Routes and rules of capture have no end.
ENDLESS = {"WatchRoutes", "WatchCapture"}


# Cycles begin them, and they end by RPCs of their own.
BEGUN_BY_CYCLES = {"WatchRollout"}


def test_the_walk_meets_every_resource_that_is_worked_on() -> None:
    nouns = {name.removeprefix("Watch") for name in named("Watch") - ENDLESS - BEGUN_BY_CYCLES}
    assert nouns == set(WORKS) == {name.removeprefix("Cancel") for name in named("Cancel")}


async def test_watch_ends_with_the_resource(mesh: Mesh) -> None:
    await prepare(mesh)
    for noun, work in WORKS.items():
        begun = await work.begin(mesh, 0)
        request: Any = message_factory.GetMessageClass(METHODS[f"Watch{noun}"].input_type)
        states: list[Any] = []
        async for response in mesh.call(f"Watch{noun}", request(name=begun.name)):
            if not states:
                await asyncio.to_thread(work.end, mesh, begun.name)
            states.append(getattr(response, work.field))
        assert (states[0].name, states[0].state) == (begun.name, begun.state), noun
        assert states[-1] == await work.again(mesh, begun.name), noun
        assert states[-1].state != begun.state, noun


async def test_cancel_of_what_has_ended_changes_nothing(mesh: Mesh) -> None:
    await prepare(mesh)
    for noun, work in WORKS.items():
        begun = await work.begin(mesh, 0)
        await asyncio.to_thread(work.end, mesh, begun.name)
        ended = await work.again(mesh, begun.name)
        request: Any = message_factory.GetMessageClass(METHODS[f"Cancel{noun}"].input_type)
        answer = await mesh.call(f"Cancel{noun}", request(name=begun.name, request_id=new_id()))
        assert getattr(answer, work.field) == ended == await work.again(mesh, begun.name), noun


async def test_what_was_there_before_is_reused_and_says_so(mesh: Mesh) -> None:
    await prepare(mesh)
    for noun, work in WORKS.items():
        first = await work.begin(mesh, 0)
        if noun == "Import":  # one that has not ended may yet find other content
            await asyncio.to_thread(work.end, mesh, first.name)
        second = await work.begin(mesh, 0)
        assert (first.reused, second.reused, second.name) == (False, True, first.name), noun
    published = [await mesh.call("PublishModel", publish(mesh, 0)) for _ in range(2)]
    assert [answer.reused for answer in published] == [False, True]


ABSENT: dict[str, tuple[Message, str, str]] = {
    "GetImport": (ingest.GetImportRequest(name="imports/no"), "import", "imports/no"),
    "WatchImport": (ingest.WatchImportRequest(name="imports/no"), "import", "imports/no"),
    "CancelImport": (ingest.CancelImportRequest(name="imports/no"), "import", "imports/no"),
    **{
        method: (request, "dead_letter", "dead-letters/no")
        for method, request in (
            ("GetDeadLetter", dead_letter.GetDeadLetterRequest(name="dead-letters/no")),
            ("ReplayDeadLetters", dead_letter.ReplayDeadLettersRequest(names=["dead-letters/no"])),
            ("DropDeadLetters", dead_letter.DropDeadLettersRequest(names=["dead-letters/no"])),
        )
    },
    **{
        f"{verb}Source": (request(name="sources/no"), "source", "sources/no")
        for verb, request in (
            ("Get", source_service.GetSourceRequest),
            ("Pause", source_service.PauseSourceRequest),
            ("Resume", source_service.ResumeSourceRequest),
            ("Delete", source_service.DeleteSourceRequest),
            ("Collect", source_service.CollectSourceRequest),
        )
    },
    "GetRecord": (cleaning.GetRecordRequest(record_id="no", source="s"), "record", "sources/s/records/no"),
    "ExplainRecord": (cleaning.ExplainRecordRequest(record_id="no", source="s"), "record", "sources/s/records/no"),
    "GetDataset": (cleaning.GetDatasetRequest(name="datasets/no"), "dataset", "datasets/no"),
    **{
        f"{verb}DatasetVersion": (
            request(name="datasets/no/versions/1"),
            "dataset_version",
            "datasets/no/versions/1",
        )
        for verb, request in (
            ("Get", cleaning.GetDatasetVersionRequest),
            ("Watch", cleaning.WatchDatasetVersionRequest),
            ("Cancel", cleaning.CancelDatasetVersionRequest),
        )
    },
    "SampleRejections": (
        cleaning.SampleRejectionsRequest(name="datasets/no/versions/1"),
        "dataset_version",
        "datasets/no/versions/1",
    ),
    "GetDatasetCard": (
        cleaning.GetDatasetCardRequest(name="datasets/no/versions/1"),
        "dataset_version",
        "datasets/no/versions/1",
    ),
    "BuildDatasetVersion": (cleaning.BuildDatasetVersionRequest(dataset="datasets/no"), "dataset", "datasets/no"),
    "ListDatasetVersions": (cleaning.ListDatasetVersionsRequest(dataset="datasets/no"), "dataset", "datasets/no"),
    "GetRun": (training.GetRunRequest(name="runs/no"), "run", "runs/no"),
    "WatchRun": (training.WatchRunRequest(name="runs/no"), "run", "runs/no"),
    "CancelRun": (training.CancelRunRequest(name="runs/no"), "run", "runs/no"),
    "PromoteRun": (training.PromoteRunRequest(name="runs/no"), "run", "runs/no"),
    "GetModel": (inference.GetModelRequest(name="models/no"), "model", "models/no"),
    "ListModelVersions": (inference.ListModelVersionsRequest(model="models/no"), "model", "models/no"),
    "RollBackModel": (inference.RollBackModelRequest(model="models/no"), "model", "models/no"),
    "UnpublishModel": (inference.UnpublishModelRequest(model="models/no"), "model", "models/no"),
    "GetRoute": (inference.GetRouteRequest(model="models/no"), "model", "models/no"),
    "SetRoute": (route("models/no", 1), "model", "models/no"),
    "PromoteVersion": (inference.PromoteVersionRequest(model="models/no", version=1), "model", "models/no"),
    "SetCascade": (inference.SetCascadeRequest(model="models/no"), "model", "models/no"),
    **{
        f"{verb}Cycle": (request(name="pipelines/p/cycles/no"), "cycle", "pipelines/p/cycles/no")
        for verb, request in (
            ("Get", pipeline.GetCycleRequest),
            ("Watch", pipeline.WatchCycleRequest),
            ("Cancel", pipeline.CancelCycleRequest),
        )
    },
    **{
        f"{verb}Rollout": (request(name="rollouts/no"), "rollout", "rollouts/no")
        for verb, request in (
            ("Get", rollout.GetRolloutRequest),
            ("Watch", rollout.WatchRolloutRequest),
            ("Approve", rollout.ApproveRolloutRequest),
            ("RollBack", rollout.RollBackRolloutRequest),
            ("Freeze", rollout.FreezeRolloutRequest),
            ("Resume", rollout.ResumeRolloutRequest),
            ("Force", rollout.ForceRolloutRequest),
        )
    },
    "GetCapturedAnswer": (pipeline.GetCapturedAnswerRequest(name="answers/no"), "captured_answer", "answers/no"),
    "GetTrigger": (trigger.GetTriggerRequest(pipeline="pipelines/no"), "trigger", "pipelines/no"),
    "PauseTrigger": (trigger.PauseTriggerRequest(pipeline="pipelines/no"), "trigger", "pipelines/no"),
    "ResumeTrigger": (trigger.ResumeTriggerRequest(pipeline="pipelines/no"), "trigger", "pipelines/no"),
    "SubmitReview": (decide("answers/no"), "review", "answers/no"),
    "LiftQuarantine": (exclusion.LiftQuarantineRequest(name="exclusions/no"), "exclusion", "exclusions/no"),
    "GetTrace": (telemetry.GetTraceRequest(trace_id="a" * 32), "trace", "a" * 32),
    "CleanText": (cleaning.CleanTextRequest(text="x", dataset="datasets/no"), "dataset", "datasets/no"),
    "ReportModelFailure": (inference.ReportModelFailureRequest(model="models/no", version=1), "model", "models/no"),
}

# These name no resource that must exist: they create, list, search or count, or what they name may come later.
NAME_NOTHING = {
    *(
        "CountRecords",
        "DeclareSources",
        "EraseFeedback",
        "EraseUser",
        "IngestRecords",
        "MeasureAgreement",
        "QuarantineFeedback",
    ),
    *(
        "PutDataset",
        "PutSource",
        "PutTrigger",
        "PublishModel",
        "CreateImport",
        "CreateRun",
        "CreateTrial",
        "CreateCycle",
        "AdviseTraining",
        "PlanTraining",
    ),
    *("BatchRecordFeedback", "RecordFeedback", "ReportAlerts", "TakeReview"),
}
# The gateway answers them; tests/unit/gateway has their errors.
OF_THE_GATEWAY = {"Predict", "Embed", "Generate"}


async def test_a_name_of_nothing_is_not_found_by_kind_and_name(mesh: Mesh) -> None:
    unary = {name for name, method in METHODS.items() if not (method.client_streaming or method.server_streaming)}
    assert unary - set(ABSENT) - set(LISTS) - OF_THE_GATEWAY == NAME_NOTHING
    assert named("Watch") - ENDLESS <= set(ABSENT)
    for method, (request, kind, name) in ABSENT.items():
        code, info, _ = await mesh.refusal(method, request)
        assert (code, info.reason, dict(info.metadata)) == ("NOT_FOUND", f"{kind.upper()}_NOT_FOUND", {kind: name}), (
            method
        )


LISTS: dict[str, Callable[[], Message]] = {
    "ListImports": ingest.ListImportsRequest,
    "ListSources": source_service.ListSourcesRequest,
    "ListDeadLetters": dead_letter.ListDeadLettersRequest,
    "ListDatasets": cleaning.ListDatasetsRequest,
    "ListDatasetVersions": lambda: cleaning.ListDatasetVersionsRequest(dataset="datasets/d"),
    "ListRuns": training.ListRunsRequest,
    "ListModels": inference.ListModelsRequest,
    "ListRoutes": inference.ListRoutesRequest,
    "ListModelVersions": lambda: inference.ListModelVersionsRequest(model="models/m"),
    "ListCycles": pipeline.ListCyclesRequest,
    "ListFeedback": pipeline.ListFeedbackRequest,
    "ListCapturedAnswers": pipeline.ListCapturedAnswersRequest,
    "ListReviews": review.ListReviewsRequest,
    "ListJudges": judge_service.ListJudgesRequest,
    "ListJudgeRatings": judge_service.ListJudgeRatingsRequest,
    "ListExclusions": exclusion.ListExclusionsRequest,
    "ListTriggers": trigger.ListTriggersRequest,
    "ListRollouts": rollout.ListRolloutsRequest,
    "ListAuditEntries": rollout.ListAuditEntriesRequest,
    "SearchLogs": telemetry.SearchLogsRequest,
    "SearchTraces": telemetry.SearchTracesRequest,
}


async def _fill(mesh: Mesh) -> None:
    """Creates three of every resource that can be listed."""
    mesh.services.capture(3)
    for number in range(3):
        await begin_rollout(mesh, number)
    for number in range(3):
        mesh.services.letters.add()
        await mesh.call("PutDataset", put(0, f"datasets/d{number}"))
        await mesh.call("RecordFeedback", judge(number))
        await mesh.call("PutTrigger", put_trigger(mesh, 60 + number))
        await mesh.call("PutSource", put_source(mesh, 70 + number))
        await mesh.call("QuarantineFeedback", exclusion.QuarantineFeedbackRequest(api_key=f"k{number}"))
        for model in ("models/m", f"models/m{number}"):
            request = publish(mesh, number)
            request.model = model
            await mesh.call("PublishModel", request)
    await prepare(mesh)
    for work in WORKS.values():
        for number in range(3):
            await work.begin(mesh, number)


async def test_lists_page_through_everything_once_and_check_size_and_token(mesh: Mesh) -> None:
    assert named("List") | named("Search") == set(LISTS)
    await _fill(mesh)
    for method, make in LISTS.items():
        request: Any = make()
        (items,) = (field for field in METHODS[method].output_type.fields if field.is_repeated and field.message_type)
        whole = await mesh.call(method, request)
        found = list(getattr(whole, items.name))
        assert len(found) >= 3, method
        assert not whole.next_page_token, method
        request.page_size, paged = 2, []
        while True:
            page = await mesh.call(method, request)
            paged += getattr(page, items.name)
            if not page.next_page_token:
                break
            assert len(getattr(page, items.name)) == 2, method
            request.page_token = page.next_page_token
        assert paged == found, method
        request.page_token = "not/a token of any list"
        code, info, fields = await mesh.refusal(method, request)
        assert (code, info.reason, fields) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN", ["page_token"]), method
        for size in (-1, 1001):
            wrong: Any = make()
            wrong.page_size = size
            code, info, fields = await mesh.refusal(method, wrong)
            assert (code, info.reason, fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["page_size"]), method


async def begin_rollout(mesh: Mesh, number: int) -> str:
    """A roll-out that waits for its turn; returns its name."""
    cycle = f"pipelines/reviews/cycles/{number:026x}"
    return await mesh.services.rollouts.begin(candidate=number, cycle=cycle)


async def _overruling(mesh: Mesh) -> dict[str, tuple[Any, Any]]:
    """For every RPC that overrules a roll-out two requests, each for one of its own."""
    found = {}
    for number, (method, request) in enumerate(
        {
            "ApproveRollout": rollout.ApproveRolloutRequest,
            "RollBackRollout": rollout.RollBackRolloutRequest,
            "FreezeRollout": rollout.FreezeRolloutRequest,
            "ResumeRollout": rollout.ResumeRolloutRequest,
            "ForceRollout": rollout.ForceRolloutRequest,
        }.items()
    ):
        names = [await begin_rollout(mesh, 100 + 2 * number + n) for n in range(2)]
        if method == "ApproveRollout":
            store = mesh.services.rollouts.store
            for name in names:
                begun = mesh.services.rollouts.read(name).begun("models/reviews/versions/1")
                proposed = begun.proposed("It did well.")
                # One of a model is at work at a time.
                store.update(replace(proposed, model=f"models/m{name[-1]}"))
        found[method] = (request(name=names[0]), request(name=names[1]))
    return found


async def _requests(mesh: Mesh) -> dict[str, tuple[Any, Any]]:
    """For every unary method with a request id: two requests that both succeed, one after the other."""
    await prepare(mesh)
    found: dict[str, tuple[Any, Any]] = {}
    # Those that are taken are the newest, those that are decided about the oldest.
    answers = mesh.services.capture(4)
    letters = [mesh.services.letters.add().name for _ in range(4)]
    keys = [exclusion.QuarantineFeedbackRequest(api_key=f"k{number}") for number in range(4)]
    held = [(await mesh.call("QuarantineFeedback", key)).exclusion.name for key in keys[:2]]
    for number, work in enumerate(WORKS.values()):
        first, second = 10 + 2 * number, 11 + 2 * number
        found[work.create] = (work.request(mesh, first), work.request(mesh, second))
        begun = [await work.begin(mesh, 30 + 2 * number + n) for n in range(2)]
        cancel: Any = message_factory.GetMessageClass(METHODS[f"Cancel{work.noun}"].input_type)
        found[f"Cancel{work.noun}"] = (cancel(name=begun[0].name), cancel(name=begun[1].name))
    runs = [await WORKS["Run"].begin(mesh, 50 + n) for n in range(2)]
    for run in runs:
        await asyncio.to_thread(WORKS["Run"].end, mesh, run.name)
    for number in range(70, 76):
        await mesh.call("PutSource", put_source(mesh, number))
    for number in (1, 2):
        for model in ("models/back", "models/set"):
            request = publish(mesh, number)
            request.model = model
            await mesh.call("PublishModel", request)
    found |= {
        "IngestRecords": (
            ingest.IngestRecordsRequest(records=[Record(source="s", text="one")]),
            ingest.IngestRecordsRequest(records=[Record(source="s", text="two")]),
        ),
        "ReplayDeadLetters": (
            dead_letter.ReplayDeadLettersRequest(names=letters[:1]),
            dead_letter.ReplayDeadLettersRequest(names=letters[1:2]),
        ),
        "DropDeadLetters": (
            dead_letter.DropDeadLettersRequest(names=letters[2:3]),
            dead_letter.DropDeadLettersRequest(names=letters[3:]),
        ),
        "PutSource": (put_source(mesh, 76), put_source(mesh, 77)),
        "DeclareSources": (declare(mesh, 78), declare(mesh, 79)),
        "PauseSource": (
            source_service.PauseSourceRequest(name="sources/s70"),
            source_service.PauseSourceRequest(name="sources/s71"),
        ),
        "ResumeSource": (
            source_service.ResumeSourceRequest(name="sources/s70"),
            source_service.ResumeSourceRequest(name="sources/s71"),
        ),
        "DeleteSource": (
            source_service.DeleteSourceRequest(name="sources/s72"),
            source_service.DeleteSourceRequest(name="sources/s73"),
        ),
        "CollectSource": (
            source_service.CollectSourceRequest(name="sources/s74"),
            source_service.CollectSourceRequest(name="sources/s75"),
        ),
        "PutDataset": (put(1), put(2)),
        "EraseFeedback": (
            cleaning.EraseFeedbackRequest(person=f"p-{1:016x}"),
            cleaning.EraseFeedbackRequest(person=f"p-{2:016x}"),
        ),
        "CreateTrial": (create_trial(80), create_trial(81)),
        "PromoteRun": (training.PromoteRunRequest(name=runs[0].name), training.PromoteRunRequest(name=runs[1].name)),
        "PublishModel": (publish(mesh, 1), publish(mesh, 2)),
        "PromoteVersion": (promote("models/set"), promote("models/back")),
        "RollBackModel": (
            inference.RollBackModelRequest(model="models/back", version=1),
            inference.RollBackModelRequest(model="models/back", version=2),
        ),
        "UnpublishModel": (
            inference.UnpublishModelRequest(model="models/back"),
            inference.UnpublishModelRequest(model="models/m"),
        ),
        "SetRoute": (route("models/set", 1), route("models/set", 2)),
        "SetCascade": (
            inference.SetCascadeRequest(model="models/set"),
            inference.SetCascadeRequest(model="models/back"),
        ),
        "QuarantineFeedback": (keys[2], keys[3]),
        "LiftQuarantine": (
            exclusion.LiftQuarantineRequest(name=held[0]),
            exclusion.LiftQuarantineRequest(name=held[1]),
        ),
        "EraseUser": (exclusion.EraseUserRequest(author="dora"), exclusion.EraseUserRequest(author="emil")),
        "TakeReview": (review.TakeReviewRequest(reviewer="anna"), review.TakeReviewRequest(reviewer="carl")),
        "SubmitReview": (decide(answers[0]), decide(answers[1])),
        "PutTrigger": (put_trigger(mesh, 60), put_trigger(mesh, 61)),
        "ReportAlerts": (report_alert(1), report_alert(2)),
        "PauseTrigger": (
            trigger.PauseTriggerRequest(pipeline="pipelines/loop60"),
            trigger.PauseTriggerRequest(pipeline="pipelines/loop61"),
        ),
        "ResumeTrigger": (
            trigger.ResumeTriggerRequest(pipeline="pipelines/loop60"),
            trigger.ResumeTriggerRequest(pipeline="pipelines/loop61"),
        ),
        **await _overruling(mesh),
        "RecordFeedback": (judge(1), judge(2)),
        "BatchRecordFeedback": (
            pipeline.BatchRecordFeedbackRequest(judgements=[pipeline.Judgement(answer="answers/a1", rating=1)]),
            pipeline.BatchRecordFeedbackRequest(judgements=[pipeline.Judgement(answer="answers/a2", rating=1)]),
        ),
    }
    return found


async def test_a_request_id_stands_for_one_request_also_after_a_restart(
    tmp_path: Path, open_service_database: OpenDatabase
) -> None:
    services = Services(tmp_path, open_service_database)
    mesh = Mesh(services)
    async with services.started():
        requests = await _requests(mesh)
        taking = {name for name, method in METHODS.items() if "request_id" in method.input_type.fields_by_name}
        assert taking - {"StreamRecords"} == set(requests)
        answers = {}
        for method, (first, second) in requests.items():
            first.request_id = f"{method}-1"
            answers[method] = await mesh.call(method, first)
            await mesh.call(method, second)
            second.request_id = first.request_id
    async with services.started():
        for method, (first, second) in requests.items():
            assert await mesh.call(method, first) == answers[method], method
            code, info, _ = await mesh.refusal(method, second)
            assert (code, info.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED"), method
            assert info.metadata["request_id"] == first.request_id, method


async def test_a_late_repeat_does_not_undo_what_came_after_it(mesh: Mesh) -> None:
    for number, request_id in ((1, "one"), (2, "two"), (1, "one")):
        request = put(number)
        request.request_id = request_id
        await mesh.call("PutDataset", request)
    kept = await mesh.call("GetDataset", cleaning.GetDatasetRequest(name="datasets/d"))
    assert kept.dataset.spec.sources == ["s2"]

    away = inference.UnpublishModelRequest(model="models/m", request_id="away")
    await mesh.call("PublishModel", publish(mesh, 1))
    await mesh.call("UnpublishModel", away)
    await mesh.call("PublishModel", publish(mesh, 2))
    await mesh.call("UnpublishModel", away)
    model = await mesh.call("GetModel", inference.GetModelRequest(name="models/m"))
    assert model.model.serving.name == "models/m/versions/2"


async def test_a_repeat_that_comes_while_the_first_is_at_work_gets_its_answer(mesh: Mesh) -> None:
    request = publish(mesh, 1)
    request.request_id = "both"
    answers = await asyncio.gather(*(mesh.call("PublishModel", request) for _ in range(4)))
    assert all(answer == answers[0] for answer in answers)
    assert not answers[0].reused


async def test_batches_of_a_stream_keep_their_request_ids_as_well(mesh: Mesh) -> None:
    service = METHODS["StreamRecords"].containing_service.full_name
    call: Any = mesh.services.channels[service].stream_stream(
        f"/{service}/StreamRecords",
        request_serializer=ingest.StreamRecordsRequest.SerializeToString,
        response_deserializer=ingest.StreamRecordsResponse.FromString,
    )

    def batch(text: str) -> ingest.StreamRecordsRequest:
        return ingest.StreamRecordsRequest(request_id="batch", records=[Record(source="s", text=text)])

    answers = [answer async for answer in call(iter([batch("one"), batch("one")]), timeout=60)]
    assert answers[0] == answers[1]
    assert mesh.services.bus.texts == ["one"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [answer async for answer in call(iter([batch("two")]), timeout=60)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
