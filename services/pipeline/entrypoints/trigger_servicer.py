# ruff: noqa: N802 - method names follow the contract
"""TriggerService over gRPC: map in, one call, map out."""

from __future__ import annotations

from typing import Any

from tidemill.pipeline.v1 import trigger_service_pb2 as pb
from tidemill.pipeline.v1 import trigger_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import read_page
from services.pipeline.app.triggers import PipelineTriggers
from services.pipeline.domain.audit import actor_of
from services.pipeline.entrypoints import mapping
from services.pipeline.entrypoints.trigger_mapping import alert_from, trigger_to

_NAME = "[a-z0-9][a-z0-9-]{0,63}"


class TriggerServicer(grpc_stubs.TriggerServiceServicer):
    """Implements `tidemill.pipeline.v1.TriggerService`."""

    def __init__(self, triggers: PipelineTriggers) -> None:
        self._triggers = triggers

    async def PutTrigger(self, request: pb.PutTriggerRequest, context: Any) -> pb.PutTriggerResponse:
        """Sets triggers."""
        view = await self._triggers.put(mapping.spec_from(request.spec))
        return pb.PutTriggerResponse(trigger=trigger_to(view))

    async def GetTrigger(self, request: pb.GetTriggerRequest, context: Any) -> pb.GetTriggerResponse:
        """Says why a cycle does or does not start now."""
        return pb.GetTriggerResponse(trigger=trigger_to(await self._triggers.get(_name(request.pipeline))))

    async def ListTriggers(self, request: pb.ListTriggersRequest, context: Any) -> pb.ListTriggersResponse:
        """Lists triggers; the page token is the last pipeline's name."""
        page = await read_page(request, _NAME, self._triggers.page, lambda view: view.trigger.pipeline)
        return pb.ListTriggersResponse(triggers=map(trigger_to, page.items), next_page_token=page.next_token)

    async def PauseTrigger(self, request: pb.PauseTriggerRequest, context: Any) -> pb.PauseTriggerResponse:
        """Pauses triggers."""
        view = await self._triggers.pause(_name(request.pipeline), True, request.reason, _who(context))
        return pb.PauseTriggerResponse(trigger=trigger_to(view))

    async def ReportAlerts(self, request: pb.ReportAlertsRequest, context: Any) -> pb.ReportAlertsResponse:
        """Takes alerts."""
        taken = await self._triggers.report([alert_from(item) for item in request.alerts])
        return pb.ReportAlertsResponse(taken_count=taken)

    async def ResumeTrigger(self, request: pb.ResumeTriggerRequest, context: Any) -> pb.ResumeTriggerResponse:
        """Ends a pause."""
        view = await self._triggers.pause(_name(request.pipeline), False, actor=_who(context))
        return pb.ResumeTriggerResponse(trigger=trigger_to(view))


def _who(context: Any) -> str:
    return actor_of(mapping.caller_of(context).key)


def _name(pipeline: str) -> str:
    return pipeline.removeprefix("pipelines/")
