"""A server that speaks OpenAI's dialect and `/v1/predict`, for judges to ask. It can be made to misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.http_server import http_server

Judge = Callable[[str, str], bool]
"""Whether an answer is good: what was asked, what was answered."""


@dataclass
class JudgeServer:
    """What it was asked, and how it answers."""

    good: Judge = lambda _asked, answered: "good" in answered
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    words: str | None = None
    """Instead of a verdict."""
    body: bytes | None = None
    """Instead of a response."""
    delay_s: float = 0.0
    tokens: int | None = 50
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    address: str = ""
    port: int = 0

    async def chat(self, request: web.Request) -> web.Response:
        """`/v1/chat/completions`."""
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        await asyncio.sleep(self.delay_s)
        if self.status != 200:
            return web.Response(status=self.status, headers=self.headers)
        if self.body is not None:
            return web.Response(body=self.body)
        material = json.loads(body["messages"][1]["content"])
        verdict = "good" if self.good(material["asked"], material["answered"]) else "bad"
        words = self.words if self.words is not None else json.dumps({"verdict": verdict, "why": f"It is {verdict}."})
        usage = {} if self.tokens is None else {"usage": {"total_tokens": self.tokens}}
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": words}}], **usage})

    async def predict(self, request: web.Request) -> web.Response:
        """`/v1/predict`."""
        body = await request.json()
        self.asked.append(body)
        label = "fine" if self.good("", body["texts"][0]) else "poor"
        return web.json_response({"model_version": "models/m/versions/1", "predictions": [{"label": label}]})


@asynccontextmanager
async def judge_server() -> AsyncIterator[JudgeServer]:
    """A server on a free port of this machine."""
    found = JudgeServer()
    async with http_server({"/v1/chat/completions": found.chat, "/v1/predict": found.predict}) as port:
        found.port = port
        found.address = f"http://127.0.0.1:{port}"
        yield found
