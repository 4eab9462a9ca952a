"""Lets callers over gRPC say that no one waits for their call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from gateway.access import BACKGROUND, FLEX, TIER


class TierInterceptor(grpc.aio.ServerInterceptor):
    """Reads `x-service-tier` of each call."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The call's handler; each call has a task of its own, in which it runs."""
        if (TIER, FLEX) in (details.invocation_metadata or ()):
            BACKGROUND.set(True)
        return await continuation(details)
