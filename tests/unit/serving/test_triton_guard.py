"""The guard before a server that speaks Triton's protocol and falls silent when the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from services.kit.errors import ResourceExhaustedError, UnavailableError
from services.serving.adapters.triton_client import TritonClient, open_triton
from services.serving.adapters.triton_guard import Limits, TritonGuard
from services.serving.adapters.triton_liveness import Liveness
from services.serving.domain.answer import Scored, Task
from services.serving.domain.route import RoutedVersion
from tests.unit.serving.reports import Reports
from tests.waiting import eventually, eventually_is


def version(model: str) -> RoutedVersion:
    """The first version of a model."""
    return RoutedVersion(model, 1, Task.TEXT_CLASSIFICATION)


QUICK = Limits(silence_s=0.1, probe_s=0.2, probes=2, waiting=4, failures=3, open_s=0.2, longest_open_s=0.4)


@dataclass
class SilentTriton(GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """Answers while `frozen` (all of it) and `stuck` (the models' processes) are not set."""

    frozen: asyncio.Event = field(default_factory=asyncio.Event)
    stuck: bool = False
    dead: bool = False
    """The model's process has died: what it held stays silent, and what asks whether it lives gets Triton's notice."""
    asked: int = 0

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.frozen.is_set():
            await asyncio.sleep(3600)
        return pb.ServerLiveResponse(live=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked += 1
        if self.frozen.is_set() or self.stuck or self.dead:
            await asyncio.sleep(3600)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        outputs = {"scores": b"\x00\x00\x80\x3f", "prompt_tokens": b"\x03\0\0\0", "truncated_tokens": bytes(4)}
        for name, raw in outputs.items():
            response.outputs.add(name=name)
            response.raw_output_contents.append(raw)
        return response


class Dying(SilentTriton):
    """Says of a dead process what Triton says."""

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            notice = f"Stub process '{request.model_name}_0_0' is not healthy." if self.dead else "no inputs"
            yield pb.ModelStreamInferResponse(error_message=notice)


@asynccontextmanager
async def _triton(stuck: list[str], limits: Limits = QUICK) -> AsyncIterator[tuple[SilentTriton, TritonClient]]:
    fake = Dying()
    server = grpc.aio.server()
    add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = open_triton(f"127.0.0.1:{port}")
    try:
        liveness = Liveness(channel, Reports())
        yield fake, TritonClient(channel, liveness, TritonGuard(channel, liveness, Reports(stuck), limits))
    finally:
        await channel.close()
        await server.stop(None)


async def _first_answer(client: TritonClient, model: str = "m") -> Any:
    async def ask() -> Any:
        try:
            return await client.classify(version(model), ["x"])
        except UnavailableError:
            return None

    return await eventually_is(ask, what="an answer")


async def test_all_that_waits_for_a_frozen_triton_is_refused_and_so_is_what_comes_later() -> None:
    async with _triton([]) as (fake, client):
        fake.frozen.set()
        waiting = await asyncio.gather(
            *(client.classify(version("m"), ["x"]) for _ in range(3)), return_exceptions=True
        )
        for error in waiting:
            assert isinstance(error, UnavailableError)
            assert error.retry_after_s
        asked = fake.asked
        for model in ("m", "other"):
            with pytest.raises(UnavailableError, match="Triton does not answer"):
                await client.classify(version(model), ["x"])
        # They were not even sent.
        assert fake.asked == asked
        fake.frozen.clear()
        assert await _first_answer(client) == [Scored(3, 0, (1.0,))]


async def _give_up(client: TritonClient) -> None:
    """As a caller whose deadline passes."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await client.classify(version("m"), ["x"])


async def test_a_stuck_model_is_asked_by_one_caller_at_a_time_until_it_answers() -> None:
    stuck: list[str] = []
    async with _triton(stuck) as (fake, client):
        fake.stuck = True
        for _ in range(3):
            await _give_up(client)
        with pytest.raises(UnavailableError, match="last 3 requests got no answer") as refused:
            await client.classify(version("m"), ["x"])
        assert refused.value.retry_after_s
        assert fake.asked == 3
        assert stuck == []

        # After its pause one is let through, and gets no answer either: the model's process is to be replaced.
        async def report() -> list[str]:
            with suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(0.15):
                    await client.classify(version("m"), ["x"])
            return stuck

        await eventually_is(report, what="the report of a stuck model")
        assert stuck == ["m.1"]
        assert fake.asked == 4
        fake.stuck = False
        assert await _first_answer(client) == [Scored(3, 0, (1.0,))]
        for _ in range(10):
            await client.classify(version("m"), ["x"])


async def test_a_caller_who_leaves_early_does_not_count_as_a_failure() -> None:
    async with _triton([], Limits(silence_s=3600, waiting=4, failures=1)) as (fake, client):
        fake.stuck = True
        await _give_up(client)
        fake.stuck = False
        assert await client.classify(version("m"), ["x"]) == [Scored(3, 0, (1.0,))]


async def test_a_limited_number_of_requests_waits_for_one_model() -> None:
    async with _triton([], Limits(silence_s=3600, waiting=4)) as (fake, client):
        fake.stuck = True
        waiting = [asyncio.create_task(client.classify(version("m"), ["x"])) for _ in range(4)]
        await eventually(lambda: fake.asked == 4, "four requests")
        with pytest.raises(ResourceExhaustedError, match="4 requests are waiting") as refused:
            await client.classify(version("m"), ["x"])
        assert refused.value.retry_after_s
        fake.stuck = False
        # Another model has a queue of its own.
        assert await client.classify(version("other"), ["x"]) == [Scored(3, 0, (1.0,))]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await client.classify(version("m"), ["x"]) == [Scored(3, 0, (1.0,))]


async def test_a_request_that_a_dead_process_holds_ends_although_nothing_else_is_asked() -> None:
    async with _triton([], Limits(model_silence_s=0.2, silence_s=0.2)) as (fake, client):
        fake.dead = True
        with pytest.raises(UnavailableError, match="its process died"):
            async with asyncio.timeout(30):
                await client.classify(version("m"), ["x"])
        fake.dead = False
        assert await client.classify(version("m"), ["x"]) == [Scored(3, 0, (1.0,))]


async def test_a_slow_model_that_lives_is_waited_for() -> None:
    async with _triton([], Limits(model_silence_s=0.05, silence_s=0.05)) as (fake, client):
        fake.stuck = True
        waiting = asyncio.create_task(client.classify(version("m"), ["x"]))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
