"""The console from what the running service says: a cycle, its triggers, its roll-out, and the audit trail."""

from __future__ import annotations

import re
import uuid

import httpx
import pytest
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from tests.integration.pipeline.conftest import Peers, PipelineProcess
from tests.integration.pipeline.test_service import spec, until
from tests.unit.gateway.console_door import opened

pytestmark = pytest.mark.real


def form_of(page: httpx.Response, **fields: str) -> dict[str, str]:
    hidden = dict(re.findall(r'name="(form_token|request_id)" value="([^"]+)"', page.text))
    return {**hidden, **fields}


async def test_the_console_shows_and_orders_what_the_service_does(
    pipeline: PipelineProcess, stub: PipelineServiceStub, peers: Peers
) -> None:
    peers.trained.set()
    wanted = spec(f"loop-{uuid.uuid4().hex[:8]}")
    wanted.triggers.new_records = 5
    cycle = stub.CreateCycle(pb.CreateCycleRequest(spec=wanted), timeout=30).cycle
    until(stub, cycle.name, lambda each: each.state == Cycle.STATE_SUCCEEDED)
    async with opened({"pipeline": f"127.0.0.1:{pipeline.port}"}) as client:
        home = await client.get("/console")
        assert f'href="/console/pipelines/{wanted.name}"' in home.text
        loop = await client.get(f"/console/pipelines/{wanted.name}")
        assert "0 of 5 new records since the last cycle" in loop.text
        shown = await client.get(f"/console/{cycle.name}")
        assert shown.text.count(">done<") + shown.text.count(">reused<") == 5
        assert "Builds and the gate" in shown.text
        pause = f"/console/pipelines/{wanted.name}/pause"
        paused = await client.post(pause, data=form_of(loop, reason="<b>holidays</b>"))
        assert paused.status_code == 303
        loop = await client.get(paused.headers["location"])
        assert "Paused: &lt;b&gt;holidays&lt;/b&gt;" in loop.text
        assert (await client.post(pause.replace("pause", "resume"), data=form_of(loop))).status_code == 303
        trail = await client.get("/console/audit", params={"resource": f"pipelines/{wanted.name}"})
        assert "trigger.pause" in trail.text
        assert (await client.get("/console/rollouts")).status_code == 200
        assert (await client.get("/console/reviews/next")).status_code == 200
        assert (await client.get("/console/rollouts/none")).status_code == 404
