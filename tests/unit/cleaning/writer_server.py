"""A server that speaks OpenAI's dialect and writes as a test wants, for augmenters to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.http_server import http_server


@dataclass
class WriterServer:
    """What it was asked, and how it answers."""

    write: Callable[[str], str] = lambda prompt: f"{prompt}, said again"
    status: int = 200
    finish: str = "stop"
    body: bytes | None = None
    """Instead of a response."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    compared: list[dict[str, Any]] = field(default_factory=list)
    labelled: list[dict[str, Any]] = field(default_factory=list)
    check_status: int = 200
    keys: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0
    address: str = ""
    hang_after: int | None = None
    """Number of calls after which it answers no more."""

    @property
    def prompts(self) -> list[str]:
        """What it was asked to write."""
        return [body["messages"][0]["content"] for body in self.asked]

    async def embed(self, request: web.Request) -> web.Response:
        """`/v1/embeddings`: how often each letter of the alphabet occurs."""
        body = await request.json()
        self.compared.append(body)
        letters = "abcdefghijklmnopqrstuvwxyz"
        vectors = [[float(text.count(letter)) for letter in letters] for text in body["input"]]
        data = [{"index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        # Their order is not promised.
        return web.json_response({"data": data[::-1]}, status=self.check_status)

    async def predict(self, request: web.Request) -> web.Response:
        """`/v1/predict`."""
        body = await request.json()
        self.labelled.append(body)
        labels = [{"label": "bad" if "not" in text.split() else "good"} for text in body["texts"]]
        return web.json_response({"predictions": labels}, status=self.check_status)

    async def chat(self, request: web.Request) -> web.Response:
        """`/v1/chat/completions`."""
        body = await request.json()
        self.asked.append(body)
        self.keys.add(request.headers.get("Authorization", ""))
        if self.hang_after is not None and len(self.asked) > self.hang_after:
            await asyncio.Event().wait()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.status != 200:
            return web.Response(status=self.status)
        if self.body is not None:
            return web.Response(body=self.body)
        words = self.write(body["messages"][0]["content"])
        choice = {"message": {"role": "assistant", "content": words}, "finish_reason": self.finish}
        return web.json_response({"choices": [choice]})


@asynccontextmanager
async def writer_server() -> AsyncIterator[WriterServer]:
    """A server on a free port of this machine."""
    found = WriterServer()
    posts = {"/v1/chat/completions": found.chat, "/v1/embeddings": found.embed, "/v1/predict": found.predict}
    async with http_server(posts) as port:
        found.address = f"http://127.0.0.1:{port}/v1"
        yield found
