"""The service starts cycles by itself and is killed meanwhile: nothing starts twice, and nothing is forgotten."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import trigger_service_pb2 as trigger_pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle, PipelineSpec
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceStub

from tests.integration.pipeline.conftest import Peers, PipelineProcess
from tests.integration.pipeline.test_service import spec
from tests.waiting import wait_until

pytestmark = pytest.mark.real
KILLS = 3


class Client:
    """Calls that wait for a service that starts again."""

    def __init__(self, process: PipelineProcess) -> None:
        self.process = process

    def cycles(self) -> list[Cycle]:
        """Newest first; empty while the service does not answer."""
        with grpc.insecure_channel(f"127.0.0.1:{self.process.port}") as channel:
            try:
                return list(PipelineServiceStub(channel).ListCycles(pb.ListCyclesRequest(), timeout=5).cycles)
            except grpc.RpcError:
                return []

    def why(self) -> Any:
        """The triggers now."""
        with grpc.insecure_channel(f"127.0.0.1:{self.process.port}") as channel:
            request = trigger_pb.GetTriggerRequest(pipeline="pipelines/headlines")
            return TriggerServiceStub(channel).GetTrigger(request, timeout=10).trigger


def test_a_service_that_is_killed_starts_each_cycle_once(pipeline: PipelineProcess, peers: Peers) -> None:
    client, wanted = Client(pipeline), PipelineSpec()
    wanted.CopyFrom(spec("headlines"))
    ParseDict({"new_records": 2, "debounce_minutes": 0, "max_cycles_per_day": 100}, wanted.triggers)
    with grpc.insecure_channel(f"127.0.0.1:{pipeline.port}") as channel:
        TriggerServiceStub(channel).PutTrigger(trigger_pb.PutTriggerRequest(spec=wanted), timeout=30)
    peers.trained.set()
    for number in range(1, KILLS + 1):
        peers.newest_arrival += 2
        # At another moment each time: before it looked, while a cycle begins, and while it works.
        if number > 1:
            wait_until(lambda wanted=number: len(client.cycles()) == wanted or None, "a cycle", 60)  # type: ignore[misc]
            time.sleep(0.1 * number)
        pipeline.kill()
        pipeline.start()
        ended = wait_until(
            lambda wanted=number: (
                [  # type: ignore[misc]
                    cycle for cycle in client.cycles() if cycle.state != Cycle.STATE_RUNNING
                ][wanted - 1 :]
                or None
            ),
            "the end of a cycle",
            60,
        )
        assert ended
        # What it counts from is known before more arrives.
        wait_until(lambda: client.why().checks[0].count == 0 or None, "a new count", 60)
    found = client.cycles()
    assert len(found) == KILLS
    assert {tuple(cycle.reasons) for cycle in found} == {("2 new records since the last cycle; 2 start one.",)}
    why = client.why()
    assert [firing.cycle for firing in why.firings] == [cycle.name for cycle in found]
    # The data set of the peers is the same each time, so only the first was worth training.
    assert [cycle.state for cycle in reversed(found)] == [Cycle.STATE_SUCCEEDED, *[Cycle.STATE_UNCHANGED] * 2]
    assert len(peers.requests["CreateRunRequest"]) == 1
    assert why.summary == "Nothing is due: 0 of 2 new records since the last cycle."
