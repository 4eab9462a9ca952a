"""Implements `Routing` of `services.pipeline.app.rollout_ports` with inference's routes, over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import route_pb2
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.kit.grpc.errors import translate_rpc_errors
from services.kit.ids import new_id
from services.pipeline.app.rollout_ports import ModelRoutes, RoutedRole
from services.pipeline.app.rollout_routes import number_of

_ROLES = {
    "serving": route_pb2.VERSION_ROLE_SERVING,
    "canary": route_pb2.VERSION_ROLE_CANARY,
    "shadow": route_pb2.VERSION_ROLE_SHADOW,
    "candidate": route_pb2.VERSION_ROLE_CANDIDATE,
}
_NAMES: Mapping[int, str] = {role: name for name, role in _ROLES.items()}
_READ_DEADLINE_S = 10.0
_SET_DEADLINE_S = 300.0
"""Versions that are not loaded are loaded before the answer."""


class InferenceRouting:
    """See the module."""

    def __init__(self, inference: grpc.aio.Channel) -> None:
        self._stub: Any = InferenceServiceStub(inference)

    async def route(self, model: str) -> ModelRoutes:
        """See the port."""
        with translate_rpc_errors("inference"):
            response = await self._stub.GetRoute(pb.GetRouteRequest(model=model), timeout=_READ_DEADLINE_S)
        found = response.route
        versions = {number_of(each.name): RoutedRole(_NAMES[each.role], each.weight) for each in found.versions}
        return ModelRoutes(versions, dict(found.aliases), found.etag)

    async def set_route(
        self, model: str, versions: Mapping[int, RoutedRole], aliases: Mapping[str, int], etag: str, reason: str
    ) -> str:
        """See the port."""
        request = pb.SetRouteRequest(
            request_id=new_id(),
            model=model,
            entries=[
                route_pb2.RouteEntry(version=number, role=_ROLES[each.role], weight=each.weight)
                for number, each in versions.items()
            ],
            aliases=aliases,
            etag=etag,
            reason=reason[:1024],
        )
        with translate_rpc_errors("inference"):
            response = await self._stub.SetRoute(request, timeout=_SET_DEADLINE_S)
        return str(response.route.etag)

    async def promote(self, model: str, number: int, reason: str) -> str:
        """See the port."""
        request = pb.PromoteVersionRequest(request_id=new_id(), model=model, version=number, reason=reason[:1024])
        with translate_rpc_errors("inference"):
            response = await self._stub.PromoteVersion(request, timeout=_SET_DEADLINE_S)
        return str(response.route.etag)
