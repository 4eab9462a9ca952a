"""Callers of one classifier at a steady rate, however slow it answers: by gRPC and by KServe's V2 over HTTP in turn."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from infra.stack.state import StackState

_TIMEOUT_S = 30.0
_SWAP_S = 120.0
_CONNECTIONS = httpx.Limits(max_connections=64, max_keepalive_connections=64)


@dataclass
class SteadyCallers:
    """What was asked, and what was answered."""

    stack: StackState
    model: str
    labels: Mapping[str, str]
    """What each version, by its number, answers to a good word."""
    answered: int = 0
    by_version: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    """Seconds, from when a call was due."""
    late: int = 0
    """Calls that this process itself began more than 50 ms too late."""

    @asynccontextmanager
    async def calling(self, per_s: float) -> AsyncIterator[None]:
        """Calls go out within the block; at its end the last answers are awaited."""
        key = (self.stack.state / "api-key").read_text().strip()
        self._metadata = (("authorization", f"Bearer {key}"),)
        http = httpx.AsyncClient(
            base_url=f"http://{self.stack.address('gateway_http')}",
            headers={"authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_S,
            limits=_CONNECTIONS,
        )
        async with http as self._http, grpc.aio.insecure_channel(self.stack.address("gateway")) as channel:
            self._stub: Any = InferenceServiceStub(channel)
            stop = asyncio.Event()
            calls = asyncio.create_task(self._calls(per_s, stop))
            try:
                yield
            finally:
                stop.set()
                await calls

    async def roll_back(self, version: int) -> None:
        """Lets a version serve, in place of the other one."""
        request = pb.RollBackModelRequest(model=f"models/{self.model}", version=version)
        await self._stub.RollBackModel(request, metadata=self._metadata, timeout=_SWAP_S)

    def report(self) -> str:
        """One line."""
        cuts = statistics.quantiles(self.latencies, n=100)
        return (
            f"{self.answered:,} answers ({dict(self.by_version)}), {len(self.failed)} failed, {len(self.wrong)} wrong, "
            f"p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, {self.late} sent late"
        )

    async def _calls(self, per_s: float, stop: asyncio.Event) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            number = 0
            while not stop.is_set():
                due = began + number / per_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self.late += time.monotonic() - due > 0.05
                group.create_task(self._call(number, due))
                number += 1

    async def _call(self, number: int, due: float) -> None:
        text = f"good room {number}"  # no two are equal: none is answered from a cache
        try:
            version, label = await (self._by_http if number % 2 else self._by_grpc)(text)
        except (grpc.aio.AioRpcError, httpx.HTTPError) as error:
            self.failed.append(repr(error)[:500])
            return
        self.latencies.append(time.monotonic() - due)
        self.answered += 1
        self.by_version[version] += 1
        if self.labels[version] != label:
            self.wrong.append(f"version {version} said {label}")

    async def _by_grpc(self, text: str) -> tuple[str, str]:
        request = pb.PredictRequest(model=f"models/{self.model}", texts=[text])
        answer = await self._stub.Predict(request, metadata=self._metadata, timeout=_TIMEOUT_S)
        return answer.model_version.rpartition("/")[2], answer.predictions[0].label

    async def _by_http(self, text: str) -> tuple[str, str]:
        tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [[text]]}
        response = await self._http.post(f"/v2/models/{self.model}/infer", json={"inputs": [tensor]})
        response.raise_for_status()
        value = response.json()
        [label] = next(each["data"] for each in value["outputs"] if each["name"] == "label")
        return value["model_version"], label
