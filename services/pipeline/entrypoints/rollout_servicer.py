# ruff: noqa: N802 - method names follow the contract
"""RolloutService over gRPC: map in, one call, map out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from tidemill.pipeline.v1 import rollout_service_pb2 as pb
from tidemill.pipeline.v1 import rollout_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import read_page
from services.kit.grpc.watching import watch
from services.kit.ids import ID_PATTERN
from services.kit.threads import in_thread
from services.pipeline.app.rollouts import Overrule, RolloutNow, Rollouts
from services.pipeline.domain.audit import actor_of
from services.pipeline.domain.rollout import Rollout
from services.pipeline.entrypoints.mapping import caller_of
from services.pipeline.entrypoints.rollout_mapping import entry_to, rollout_to


class RolloutServicer(grpc_stubs.RolloutServiceServicer):
    """Implements `tidemill.pipeline.v1.RolloutService`."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Any) -> pb.GetRolloutResponse:
        """Reads a roll-out with its figures."""
        return pb.GetRolloutResponse(rollout=rollout_to(await self._rollouts.get(request.name)))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Any) -> pb.ListRolloutsResponse:
        """Lists roll-outs; the page token is the last id."""
        read = partial(self._rollouts.page, request.model)
        page = await read_page(request, ID_PATTERN, read, lambda item: item.rollout_id)
        found = [rollout_to(RolloutNow(item)) for item in page.items]
        return pb.ListRolloutsResponse(rollouts=found, next_page_token=page.next_token)

    async def WatchRollout(
        self, request: pb.WatchRolloutRequest, context: Any
    ) -> AsyncIterator[pb.WatchRolloutResponse]:
        """Sends the roll-out now, at each change of its state or figures, and ends with its final state."""
        async for now in watch(partial(self._rollouts.progress, request.name), lambda now: _is_over(now.rollout)):
            yield pb.WatchRolloutResponse(rollout=rollout_to(now))

    async def ApproveRollout(self, request: pb.ApproveRolloutRequest, context: Any) -> pb.ApproveRolloutResponse:
        """Allows the step that is proposed."""
        rollout = await self._rollouts.approve(request.name, _by(request, context))
        return pb.ApproveRolloutResponse(rollout=rollout_to(RolloutNow(rollout)))

    async def RollBackRollout(self, request: pb.RollBackRolloutRequest, context: Any) -> pb.RollBackRolloutResponse:
        """Gives all users the version before."""
        rollout = await self._rollouts.roll_back(request.name, _by(request, context))
        return pb.RollBackRolloutResponse(rollout=rollout_to(RolloutNow(rollout)))

    async def FreezeRollout(self, request: pb.FreezeRolloutRequest, context: Any) -> pb.FreezeRolloutResponse:
        """Holds a roll-out."""
        rollout = await self._rollouts.freeze(request.name, _by(request, context))
        return pb.FreezeRolloutResponse(rollout=rollout_to(RolloutNow(rollout)))

    async def ResumeRollout(self, request: pb.ResumeRolloutRequest, context: Any) -> pb.ResumeRolloutResponse:
        """Resumes a roll-out."""
        rollout = await self._rollouts.resume(request.name, _by(request, context))
        return pb.ResumeRolloutResponse(rollout=rollout_to(RolloutNow(rollout)))

    async def ForceRollout(self, request: pb.ForceRolloutRequest, context: Any) -> pb.ForceRolloutResponse:
        """Promotes at once."""
        rollout = await self._rollouts.force(request.name, _by(request, context))
        return pb.ForceRolloutResponse(rollout=rollout_to(RolloutNow(rollout)))

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, context: Any) -> pb.ListAuditEntriesResponse:
        """Lists the audit trail; the page token is the last id."""
        read = in_thread(partial(self._rollouts.audit, request.resource))
        page = await read_page(request, ID_PATTERN, read, lambda entry: entry.entry_id)
        entries = [entry_to(entry) for entry in page.items]
        return pb.ListAuditEntriesResponse(entries=entries, next_page_token=page.next_token)


def _by(request: Any, context: Any) -> Overrule:
    return Overrule(actor_of(caller_of(context).key), request.reason)


def _is_over(rollout: Rollout) -> bool:
    return rollout.state.final and rollout.applied
