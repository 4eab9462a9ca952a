"""`/healthz` and `/metrics`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from gateway.health import PartsHealth
from gateway.http.calls import json_response
from gateway.http.door import from_this_machine
from services.kit.telemetry.process_metrics import ProcessMetrics


def health_routes(health: PartsHealth, processes: ProcessMetrics) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Operation"])

    @router.get("/healthz", summary="Health of the gateway and, for this machine, of every part")
    async def healthz(request: Request) -> Response:
        # 200 as long as the gateway serves: restarting it would not help a part behind it.
        parts = await health.parts()
        well = all(part["status"] == "serving" for part in parts.values())
        body: dict[str, Any] = {"service": "gateway", "status": "ok" if well else "degraded"}
        if from_this_machine(request.scope):
            body["parts"] = parts
        return json_response(body)

    @router.get("/metrics", summary="Prometheus metrics")
    async def prometheus(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await asyncio.to_thread(encode, processes.registry), headers={"Content-Type": content_type})

    return router
