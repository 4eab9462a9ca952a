"""A channel whose certificates change without a restart: new calls take a connection with the newest files.

gRPC's own credentials are read once. A call that began before keeps its connection, which is closed when
its last call has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from services.kit.tls import Certificates, ClientFiles, TlsFiles

_SETTLE_S = 30.0
"""Time for calls that took the channel just before and are still in interceptors."""
_LAST_CALL_S = 24 * 3600.0
"""How long a call may still use a connection with earlier files, such as a watch that lasts for hours."""

Open = Callable[[Certificates], grpc.aio.Channel]


class RenewingChannel(grpc.aio.Channel):
    """Delegates each call to the channel with the newest files that fit together."""

    def __init__(self, files: TlsFiles, open_one: Open) -> None:
        """Reads the files and opens the first channel.

        Raises:
            FailedPreconditionError: they cannot be used; names the file.
        """
        self._files = ClientFiles(files)
        self._open = open_one
        self._channel = open_one(self._files.read())
        self._closing: set[asyncio.Task[None]] = set()
        self.version = 0
        """Increases with each new channel."""

    def current(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        read = self._files.changed()
        if read is None:
            return self._channel
        old, self._channel = self._channel, self._open(read)
        self.version += 1
        closing = asyncio.ensure_future(_let_go(old))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return self._channel

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel and those before it."""
        for closing in tuple(self._closing):
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`; of the newest channel."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`; of the newest channel."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until the newest channel is connected."""
        await self.current().channel_ready()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`; each call takes the newest channel."""
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`; each call takes the newest channel."""
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`; each call takes the newest channel."""
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`; each call takes the newest channel."""
        return _Method(self, "stream_stream", arguments, options)

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _let_go(channel: grpc.aio.Channel) -> None:
    """Closes a channel once its calls have ended, or at once if it is cancelled."""
    try:
        await asyncio.sleep(_SETTLE_S)
        await channel.close(_LAST_CALL_S)
    finally:
        await channel.close()


class _Method:
    """One method of a peer; created again at the first call over each new channel."""

    def __init__(
        self, channel: RenewingChannel, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._channel, self._kind, self._arguments, self._options = channel, kind, arguments, options
        self._version = -1
        self._call: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        current = self._channel.current()
        if self._call is None or self._version != self._channel.version:
            self._call = getattr(current, self._kind)(*self._arguments, **self._options)
            self._version = self._channel.version
        return self._call(*arguments, **options)
