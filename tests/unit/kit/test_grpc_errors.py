"""Errors over a real channel: what a use case raises in one process is what the caller in another one catches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as stubs
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from services.kit import errors as tree
from services.kit.errors import (
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    TidemillError,
    UnavailableError,
    is_retryable,
)
from services.kit.grpc.client import open_channel
from services.kit.grpc.errors import translate_rpc_errors
from services.kit.grpc.server import create_server
from services.kit.telemetry.metrics import RequestMetrics
from tests.grpc_servers import serving

_NAME = "pipelines/a/cycles/b"


def _kinds(root: type[TidemillError]) -> Iterator[type[TidemillError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)


# The tree itself; others may derive from it.
KINDS = [kind for kind in _kinds(TidemillError) if kind.__module__ == tree.__name__]


class Raising(stubs.PipelineServiceServicer):
    """Raises `error`; `calls` counts."""

    def __init__(self) -> None:
        self.error: Exception = RuntimeError("unset")
        self.calls = 0
        self.cancelled = asyncio.Event()

    async def GetCycle(self, request: Any, context: Any) -> pb.GetCycleResponse:  # noqa: N802
        self.calls += 1
        raise self.error

    async def WatchCycle(self, request: Any, context: Any) -> AsyncIterator[pb.WatchCycleResponse]:  # noqa: N802
        yield pb.WatchCycleResponse()
        raise self.error

    async def CreateCycle(self, request: Any, context: Any) -> pb.CreateCycleResponse:  # noqa: N802
        return pb.CreateCycleResponse()

    async def CancelCycle(self, request: Any, context: Any) -> pb.CancelCycleResponse:  # noqa: N802
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError("unreachable")


def raising() -> Raising:
    """One; what no test calls answers UNIMPLEMENTED."""
    return Raising()  # type: ignore[abstract]


@asynccontextmanager
async def peer(servicer: Raising, default_deadline_s: float = 30.0, *, bare: bool = False) -> AsyncIterator[Any]:
    """A stub of the servicer, through the kit's server and channel."""
    server = create_server(RequestMetrics("test"), default_deadline_s=default_deadline_s)
    stubs.add_PipelineServiceServicer_to_server(servicer, server)
    async with serving(server) as port, open_channel(f"127.0.0.1:{port}", bare=bare) as channel:
        yield PipelineServiceStub(channel)


async def _raised(stub: Any) -> TidemillError:
    with pytest.raises(TidemillError) as caught, translate_rpc_errors("pipeline"):
        await stub.GetCycle(pb.GetCycleRequest(name=_NAME))
    return caught.value


def test_the_tree_covers_each_code_once() -> None:
    assert len(KINDS) >= 11
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    assert all(hasattr(grpc.StatusCode, kind.code) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
async def test_each_kind_arrives_as_it_was_raised(kind: type[TidemillError]) -> None:
    servicer = raising()
    servicer.error = kind(
        "看 what happened.",
        reason="A_REASON",
        metadata={"name": "值"},
        violations=[FieldViolation("spec.sources[0].uri", "is not a URI"), FieldViolation("spec", "is empty")],
        retry_after_s=1.5,
    )
    async with peer(servicer) as stub:
        found = await _raised(stub)
    assert type(found) is kind
    assert (found.message, found.reason, found.metadata["name"]) == ("看 what happened.", "A_REASON", "值")
    # Who waits for it can say for whom.
    assert found.metadata.get("peer") == ("pipeline" if is_retryable(found) else None)
    assert found.violations == servicer.error.violations
    assert found.retry_after_s == 1.5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
async def test_what_is_temporary_says_when_to_come_again(kind: type[TidemillError]) -> None:
    servicer = raising()
    servicer.error = kind("It knows no time.")
    async with peer(servicer) as stub:
        found = await _raised(stub)
    assert found.retry_after_s == (1.0 if kind in (tree.UnavailableError, tree.ResourceExhaustedError) else None)


async def test_a_stream_that_breaks_off_reports_why() -> None:
    servicer = raising()
    servicer.error = tree.NotFoundError("It is gone.", reason="GONE")
    async with peer(servicer) as stub:
        responses = aiter(stub.WatchCycle(pb.WatchCycleRequest(name=_NAME)))
        assert await anext(responses) == pb.WatchCycleResponse()
        with pytest.raises(tree.NotFoundError, match="It is gone"), translate_rpc_errors("pipeline"):
            await anext(responses)


async def test_thousands_of_wrong_fields_are_still_refused_with_what_is_wrong() -> None:
    servicer = raising()
    servicer.error = InvalidArgumentError(
        "坏的 " * 3000,
        violations=[FieldViolation(f"records[{number}].text", "value is required") for number in range(5000)],
    )
    async with peer(servicer) as stub:
        found = await _raised(stub)
    assert isinstance(found, InvalidArgumentError)
    assert found.message.startswith("坏的")
    assert found.violations[0] == FieldViolation("records[0].text", "value is required")
    assert "more" in found.violations[-1].description


async def test_what_is_not_unicode_is_reported_all_the_same() -> None:
    servicer = raising()
    servicer.error = tree.NotFoundError(
        "There is no file a\udcff.", metadata={"file": "a\udcff"}, violations=[FieldViolation("a\udcff", "b\udcff")]
    )
    async with peer(servicer) as stub:
        found = await _raised(stub)
    assert isinstance(found, tree.NotFoundError)
    assert (found.message, found.metadata) == ("There is no file a?.", {"file": "a?"})
    assert found.violations == (FieldViolation("a?", "b?"),)


async def test_a_defect_is_reported_without_its_words() -> None:
    servicer = raising()
    servicer.error = RuntimeError("the text of a record")
    async with peer(servicer) as stub:
        found = await _raised(stub)
    assert isinstance(found, InternalError)
    assert found.reason == "UNEXPECTED"
    assert "record" not in found.message


async def test_wrong_fields_are_reported_by_their_paths() -> None:
    request = pb.CreateCycleRequest(request_id="x" * 129)
    request.spec.name = "Bad Name"
    request.spec.sources.add(source="a").text_folder.uri = "/a"
    request.spec.sources.add()
    async with peer(raising()) as stub:
        with pytest.raises(InvalidArgumentError) as caught, translate_rpc_errors("pipeline"):
            await stub.CreateCycle(request)
    fields = {violation.field for violation in caught.value.violations}
    assert {"request_id", "spec.name", "spec.sources[1].source", "spec.dataset"} <= fields


async def test_a_peer_that_is_not_there_is_named() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        stub: Any = PipelineServiceStub(channel)
        with pytest.raises(UnavailableError) as caught, translate_rpc_errors("pipeline"):
            await stub.GetCycle(pb.GetCycleRequest(name=_NAME))
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert caught.value.metadata == {"peer": "pipeline"}
    assert caught.value.retry_after_s


async def test_a_peer_that_is_briefly_unavailable_is_retried() -> None:
    servicer = raising()
    servicer.error = UnavailableError("not yet")
    async with peer(servicer) as stub:
        assert (await _raised(stub)).message.startswith(
            "The pipeline service does not answer: not yet. Retry later. `tidemill status` shows"
        )
        assert servicer.calls > 1


async def test_a_peer_in_trouble_is_not_drowned_in_repeats() -> None:
    servicer = raising()
    servicer.error = UnavailableError("overwhelmed")
    calls = 200
    async with peer(servicer) as stub:
        await asyncio.gather(*(_raised(stub) for _ in range(calls)))
    assert servicer.calls < 1.5 * calls


@pytest.mark.parametrize("given", [True, False])
async def test_a_deadline_ends_the_work_behind_the_call(given: bool) -> None:
    servicer = raising()
    # A caller that gives none gets the server's.
    async with peer(servicer, default_deadline_s=60.0 if given else 0.2, bare=not given) as stub:
        with pytest.raises(tree.DeadlineExceededError) as caught, translate_rpc_errors("pipeline"):
            await stub.CancelCycle(pb.CancelCycleRequest(name=_NAME), timeout=0.2 if given else None)
        async with asyncio.timeout(60):
            await servicer.cancelled.wait()
    assert caught.value.metadata.get("peer") == "pipeline" or "CancelCycle" in caught.value.message


async def test_a_timeout_of_the_works_own_is_a_defect_and_no_deadline() -> None:
    servicer = raising()
    servicer.error = TimeoutError("a socket's")
    async with peer(servicer) as stub:
        assert isinstance(await _raised(stub), InternalError)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_span_does_not_hold_what_an_error_quotes(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    servicer = raising()
    servicer.error = tree.not_found("record", "jane@example.com")
    async with peer(servicer) as stub:

        async def ask() -> None:
            if not streamed:
                await stub.GetCycle(pb.GetCycleRequest(name=_NAME))
            async for _ in stub.WatchCycle(pb.WatchCycleRequest(name=_NAME)):
                pass

        with pytest.raises(grpc.aio.AioRpcError, match=r"jane@example\.com"):
            await ask()
    (span,) = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert "jane@example.com" not in span.to_json()
