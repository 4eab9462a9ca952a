"""The mesh as a product sees it: its command line, and its gateway."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from tidemill.pipeline.v1 import cycle_pb2, pipeline_service_pb2, rollout_pb2, rollout_service_pb2
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.pipeline.v1.rollout_service_pb2_grpc import RolloutServiceStub

_TIMEOUT_S = 30.0


class CommandError(Exception):
    """A command ended badly."""


@dataclass
class Mesh:
    """One mesh on this machine."""

    state: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """What its pipeline files name as `${NAME}`."""

    async def command(self, *arguments: str) -> str:
        """Runs a command of `tidemill` and returns what it prints.

        Raises:
            CommandError: it failed.
        """

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "gateway.cli.main", *arguments],
                env={**os.environ, "TIDEMILL_STATE": str(self.state), "NO_COLOR": "1", **self.variables},
                capture_output=True,
                text=True,
                check=False,
            )

        ended = await asyncio.to_thread(run)
        if ended.returncode:
            raise CommandError(f"tidemill {' '.join(arguments)}:\n{ended.stdout}\n{ended.stderr}")
        return ended.stdout

    async def start_cycle(self, file: Path) -> str:
        """Starts a cycle and returns its name."""
        name: str = json.loads(await self.command("run", str(file), "--detach", "--json"))["name"]
        return name

    @property
    def key(self) -> str:
        """The API key that the gateway made at its first start."""
        return (self.state / "api-key").read_text(encoding="utf-8").strip()

    @cached_property
    def address(self) -> str:
        """host:port of the gateway's gRPC API."""
        stack = json.loads((self.state / "stack.json").read_text(encoding="utf-8"))
        return f"127.0.0.1:{stack['ports']['gateway']}"

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    async def _call(self, method: Any, request: Any) -> Any:
        return await method(request, metadata=(("authorization", f"Bearer {self.key}"),), timeout=_TIMEOUT_S)

    async def cycle(self, name: str) -> cycle_pb2.Cycle:
        """A cycle as it is now."""
        request = pipeline_service_pb2.GetCycleRequest(name=name)
        cycle: cycle_pb2.Cycle = (await self._call(PipelineServiceStub(self._channel).GetCycle, request)).cycle
        return cycle

    async def cycles(self, pipeline: str) -> list[cycle_pb2.Cycle]:
        """The cycles of a pipeline, newest first."""
        request = pipeline_service_pb2.ListCyclesRequest(pipeline=f"pipelines/{pipeline}", page_size=100)
        return list((await self._call(PipelineServiceStub(self._channel).ListCycles, request)).cycles)

    async def rollouts(self, model: str) -> list[rollout_pb2.ModelRollout]:
        """The roll-outs of a model, newest first."""
        request = rollout_service_pb2.ListRolloutsRequest(model=f"models/{model}", page_size=100)
        return list((await self._call(RolloutServiceStub(self._channel).ListRollouts, request)).rollouts)

    async def decisions(self) -> list[rollout_pb2.AuditEntry]:
        """The whole audit trail, oldest first."""
        return [
            entry
            async for page in self._pages(
                RolloutServiceStub(self._channel).ListAuditEntries, rollout_service_pb2.ListAuditEntriesRequest()
            )
            for entry in page.entries
        ][::-1]

    async def captured_answers(self, model: str) -> set[str]:
        """Ids of the answers that the mesh keeps."""
        request = pipeline_service_pb2.ListCapturedAnswersRequest(model=f"models/{model}")
        pages = self._pages(PipelineServiceStub(self._channel).ListCapturedAnswers, request)
        return {answer.name async for page in pages for answer in page.answers}

    async def judged_answers(self, model: str) -> set[str]:
        """Ids of the answers that the mesh has feedback on."""
        request = pipeline_service_pb2.ListFeedbackRequest(model=f"models/{model}")
        pages = self._pages(PipelineServiceStub(self._channel).ListFeedback, request)
        return {feedback.answer async for page in pages for feedback in page.feedback}

    async def _pages(self, method: Any, request: Any) -> Any:
        request.page_size = 1000
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
