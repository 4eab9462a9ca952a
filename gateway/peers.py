"""Channels to the services behind the gateway, opened once and shared by every door.

They have no interceptors: the doors pass on trace context and deadline themselves, which keeps a hop well under a
millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from opentelemetry import propagate
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceStub

from gateway.access import CALLER
from services.kit.config import ServiceSettings
from services.kit.grpc.client import open_channel

if TYPE_CHECKING:
    from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub
    from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceAsyncStub
    from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceAsyncStub

PEERS = ("ingest", "cleaning", "training", "inference", "pipeline", "telemetry")


@dataclass(frozen=True, slots=True)
class Peers:
    """Open channels by service, and the stubs that the HTTP doors use."""

    channels: Mapping[str, grpc.aio.Channel]
    ingest: IngestServiceAsyncStub
    pipeline: PipelineServiceAsyncStub
    trigger: TriggerServiceAsyncStub

    @classmethod
    def open(cls, settings: ServiceSettings) -> Peers:
        """Opens the channels inside the running event loop; none connects before its first call."""
        channels = {
            name: open_channel(getattr(settings, f"{name}_address"), bare=True, tls=settings.peer_files)
            for name in PEERS
        }
        return cls(
            channels=channels,
            ingest=IngestServiceStub(channels["ingest"]),
            pipeline=PipelineServiceStub(channels["pipeline"]),
            trigger=TriggerServiceStub(channels["pipeline"]),
        )

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self.channels.values():
            await channel.close()


def call_metadata() -> tuple[tuple[str, str], ...]:
    """The current span (W3C trace context) and caller (`x-tidemill-key`, `x-tidemill-tenant`) as gRPC metadata."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    caller = CALLER.get()
    return (*carrier.items(), *caller.metadata()) if caller is not None else tuple(carrier.items())
