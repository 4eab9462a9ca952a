"""Calls of the services in the name of the person who is signed in.

They are checked against the table of roles that gRPC callers are checked against (`gateway.access`), and carry the id
and the tenant of the key, so that the audit trail names who acted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import grpc
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.pipeline.v1.judge_service_pb2_grpc import JudgeServiceStub
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.pipeline.v1.review_service_pb2_grpc import ReviewServiceStub
from tidemill.pipeline.v1.rollout_service_pb2_grpc import RolloutServiceStub
from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceStub
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceStub
from tidemill.training.v1.training_service_pb2_grpc import TrainingServiceStub

from gateway.access import CALLER, METHODS, demand
from gateway.peers import call_metadata
from services.kit.errors import TidemillError
from services.kit.grpc.errors import translate_rpc_errors

if TYPE_CHECKING:
    from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceAsyncStub
    from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from tidemill.pipeline.v1.judge_service_pb2_grpc import JudgeServiceAsyncStub
    from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceAsyncStub
    from tidemill.pipeline.v1.review_service_pb2_grpc import ReviewServiceAsyncStub
    from tidemill.pipeline.v1.rollout_service_pb2_grpc import RolloutServiceAsyncStub
    from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceAsyncStub
    from tidemill.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceAsyncStub
    from tidemill.training.v1.training_service_pb2_grpc import TrainingServiceAsyncStub

T = TypeVar("T")

_READ_S = 10.0


class _CallersChannel:
    """A channel for stubs: each call is made with the roles and the identity of the current caller."""

    def __init__(self, peer: str, channel: grpc.aio.Channel) -> None:
        self._peer, self._channel = peer, channel

    def unary_unary(self, path: str, *rest: Any, **more: Any) -> Callable[..., Awaitable[Any]]:
        inner = self._channel.unary_unary(path, *rest, **more)

        async def call(request: Any, timeout: float = _READ_S) -> Any:
            # Roles of a method that is not public are in no table; no key has them but an admin's.
            if (caller := CALLER.get()) is not None:
                demand(caller.key, METHODS.get(path, frozenset()), path.rpartition("/")[2])
            with translate_rpc_errors(self._peer):
                return await inner(request, timeout=timeout, metadata=call_metadata())

        return call

    def _stream(self, path: str, *_: Any, **__: Any) -> str:
        return path  # pages call no streams

    unary_stream = stream_unary = stream_stream = _stream


@dataclass(frozen=True, slots=True)
class Services:
    """The stubs that pages use. A call waits 10 s unless it says otherwise, and raises our errors."""

    cleaning: CleaningServiceAsyncStub
    training: TrainingServiceAsyncStub
    inference: InferenceServiceAsyncStub
    pipeline: PipelineServiceAsyncStub
    trigger: TriggerServiceAsyncStub
    rollouts: RolloutServiceAsyncStub
    review: ReviewServiceAsyncStub
    judge: JudgeServiceAsyncStub
    telemetry: TelemetryServiceAsyncStub

    @classmethod
    def over(cls, channels: Mapping[str, grpc.aio.Channel]) -> Services:
        """The stubs over open channels, by service."""

        def channel(peer: str) -> grpc.aio.Channel:
            return cast("grpc.aio.Channel", _CallersChannel(peer, channels[peer]))

        pipeline = channel("pipeline")
        return cls(
            cleaning=CleaningServiceStub(channel("cleaning")),
            training=TrainingServiceStub(channel("training")),
            inference=InferenceServiceStub(channel("inference")),
            pipeline=PipelineServiceStub(pipeline),
            trigger=TriggerServiceStub(pipeline),
            rollouts=RolloutServiceStub(pipeline),
            review=ReviewServiceStub(pipeline),
            judge=JudgeServiceStub(pipeline),
            telemetry=TelemetryServiceStub(channel("telemetry")),
        )


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """What a part of a page shows: a value, or why there is none. A page survives a service that does not answer."""

    found: T | None = None
    error: TidemillError | None = None


async def section(call: Awaitable[T]) -> Section[T]:
    """The result of a call for a part of a page."""
    try:
        return Section(found=await call)
    except TidemillError as error:
        return Section(error=error)


async def sections(*calls: Awaitable[Any]) -> list[Section[Any]]:
    """Several of them at the same time."""
    return await asyncio.gather(*(section(call) for call in calls))


async def every_page(call: Callable[[Any], Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
    """The responses of a List call, page after page. The request's token is changed."""
    while True:
        response = await call(request)
        yield response
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def may(service: str, method: str) -> bool:
    """Whether the current caller may call a public method, such as `RolloutService`, `ApproveRollout`."""
    roles = METHODS[f"/tidemill.{_AREAS[service]}.v1.{service}/{method}"]
    caller = CALLER.get()
    return caller is None or roles is None or caller.key.allows(roles)


_AREAS = {
    "RolloutService": "pipeline",
    "ReviewService": "pipeline",
    "JudgeService": "pipeline",
    "TriggerService": "pipeline",
    "PipelineService": "pipeline",
    "CleaningService": "cleaning",
}
