# ruff: noqa: N802 - method names follow the contract
"""ExclusionService over gRPC: map in, one call, map out."""

from __future__ import annotations

import asyncio
from typing import Any

from tidemill.pipeline.v1 import exclusion_service_pb2 as pb
from tidemill.pipeline.v1 import exclusion_service_pb2_grpc as grpc_stubs

from services.kit.grpc.messages import timestamp
from services.kit.grpc.paging import read_page
from services.kit.ids import ID_PATTERN
from services.kit.threads import in_thread
from services.pipeline.app.exclusions import Exclusions, ExclusionView
from services.pipeline.domain.audit import actor_of
from services.pipeline.domain.exclusion import ExclusionKind
from services.pipeline.entrypoints.mapping import caller_of

_KINDS = {
    ExclusionKind.QUARANTINE: pb.Exclusion.KIND_QUARANTINE,
    ExclusionKind.ERASURE: pb.Exclusion.KIND_ERASURE,
}


class ExclusionServicer(grpc_stubs.ExclusionServiceServicer):
    """Implements `tidemill.pipeline.v1.ExclusionService`."""

    def __init__(self, exclusions: Exclusions) -> None:
        self._exclusions = exclusions

    async def QuarantineFeedback(
        self, request: pb.QuarantineFeedbackRequest, context: Any
    ) -> pb.QuarantineFeedbackResponse:
        """Quarantines an API key or a person."""
        whose = (request.api_key, request.person, request.author, request.tenant)
        view = await asyncio.to_thread(self._exclusions.quarantine, *whose, request.reason, _who(context))
        return pb.QuarantineFeedbackResponse(exclusion=_message(view))

    async def LiftQuarantine(self, request: pb.LiftQuarantineRequest, context: Any) -> pb.LiftQuarantineResponse:
        """Ends a quarantine."""
        view = await asyncio.to_thread(self._exclusions.lift, request.name, _who(context))
        return pb.LiftQuarantineResponse(exclusion=_message(view))

    async def EraseUser(self, request: pb.EraseUserRequest, context: Any) -> pb.EraseUserResponse:
        """Erases a person."""
        whose = (request.author, request.tenant)
        view = await asyncio.to_thread(self._exclusions.erase, *whose, request.reason, _who(context))
        return pb.EraseUserResponse(exclusion=_message(view))

    async def ListExclusions(self, request: pb.ListExclusionsRequest, context: Any) -> pb.ListExclusionsResponse:
        """Lists exclusions; the page token is the last id."""
        read = in_thread(self._exclusions.page)
        page = await read_page(request, ID_PATTERN, read, lambda view: view.exclusion.exclusion_id)
        return pb.ListExclusionsResponse(exclusions=map(_message, page.items), next_page_token=page.next_token)


def _who(context: Any) -> str:
    return actor_of(caller_of(context).key)


def _message(view: ExclusionView) -> pb.Exclusion:
    item = view.exclusion
    message = pb.Exclusion(
        name=item.name,
        kind=_KINDS[item.kind],
        create_time=timestamp(item.create_time),
        api_key=item.api_key,
        person=item.person,
        reason=item.reason,
        affected=[
            pb.AffectedCycle(
                cycle=each.cycle,
                dataset_version=each.dataset_version,
                run=each.run,
                model_version=each.model_version,
                records=each.records,
            )
            for each in view.affected
        ],
        removed=item.removed,
        ordered_pipelines=[f"pipelines/{name}" for name in item.ordered],
    )
    message.rewritten_versions.extend(item.rewritten)
    if item.complete_time is not None:
        message.complete_time.CopyFrom(timestamp(item.complete_time))
    if item.lift_time is not None:
        message.lift_time.CopyFrom(timestamp(item.lift_time))
    return message
