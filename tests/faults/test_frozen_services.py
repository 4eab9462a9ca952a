"""A service that is frozen: its callers get UNAVAILABLE long before their deadline, and answers once it continues."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import pipeline_service_pb2_grpc as stubs

from infra.stack.layout import python_path
from services.kit.grpc.client import open_channel
from tests.freezing import frozen
from tests.waiting import PATIENCE_S, eventually_is

_SERVICE = Path(__file__).parents[1] / "integration" / "kit" / "probe_service.py"
# A caller that is patient: a minute is two of the periods after which the supervisor kills what is frozen.
_DEADLINE_S = 60.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "TIDEMILL_BIND": f"unix:{tmp_path}/socket",
        "TIDEMILL_STATE": str(tmp_path),
    }
    environment.pop("TIDEMILL_OTLP_ENDPOINT", None)
    process = subprocess.Popen([sys.executable, str(_SERVICE), "serve"], env=environment, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


@pytest.mark.real
@pytest.mark.parametrize(
    "bare", [pytest.param(True, id="gateway"), pytest.param(False, id="peer", marks=pytest.mark.slow)]
)
async def test_callers_of_a_frozen_service_do_not_wait_out_their_deadline(
    service: subprocess.Popen[bytes], tmp_path: Path, bare: bool
) -> None:
    async with open_channel(f"unix:{tmp_path}/socket", bare=bare) as channel:
        stub: Any = stubs.PipelineServiceStub(channel)

        async def asked() -> bool:
            try:
                await stub.GetCycle(pb.GetCycleRequest(name="pipelines/a/cycles/1"), timeout=_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return True

        await eventually_is(asked, what="an answer", patience_s=PATIENCE_S)
        with frozen(service.pid):
            # The first finds it out; the second meets a channel that knows.
            assert [await asked() for _ in range(2)] == [False] * 2
        await eventually_is(asked, what="an answer", patience_s=PATIENCE_S)
