"""Every call at the doors is in the table of roles, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

from gateway.access import METHODS, ROUTES, demand
from gateway.batches.store import BatchStore
from gateway.facade.table import public_services
from gateway.http.app import create_routes
from gateway.keys.key import ApiKey, Role
from gateway.peers import Peers
from gateway.plane import DataPlane
from gateway.settings import GatewaySettings
from services.kit.errors import PermissionDeniedError
from services.kit.telemetry.process_metrics import ProcessMetrics

_LINES = "application/jsonl"
# Pages that describe the API, and what they load.
_DOCUMENTS = ("/docs", "/openapi.json", "/static-offline-docs")


def methods() -> Iterator[str]:
    for service in public_services():
        yield from (f"/{service.name}/{method.name}" for method in service.public_methods())
    for module in (health_pb2, reflection_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from (f"/{service.full_name}/{method.name}" for method in service.methods)


def test_every_method_names_its_roles() -> None:
    assert set(methods()) == set(METHODS)


def test_originals_are_shown_to_operators_only() -> None:
    assert METHODS["/tidemill.cleaning.v1.CleaningService/ExplainRecord"] == frozenset({Role.OPERATE})
    letters = [roles for method, roles in METHODS.items() if "DeadLetterService" in method]
    assert letters == [frozenset({Role.OPERATE})] * 4


async def openapi_paths() -> dict[str, Any]:
    peers = Peers.open(GatewaySettings.model_validate({}))
    routes: Any = create_routes(
        peers,
        cast(DataPlane, SimpleNamespace(v2=None)),
        cast(BatchStore, None),
        asyncio.Event(),
        ProcessMetrics(CollectorRegistry(), "gateway", None, 1, 1),
        keyed=False,
    )
    paths: dict[str, Any] = routes._app.openapi()["paths"]
    await peers.close()
    return paths


async def test_every_route_names_its_roles() -> None:
    routes = {(method.upper(), path) for path, operations in (await openapi_paths()).items() for method in operations}
    assert {route for route in routes if not route[1].startswith(_DOCUMENTS)} == set(ROUTES)


async def test_every_json_response_is_described_by_a_model() -> None:
    answers = [
        (path, operation["responses"]["200"]["content"])
        for path, operations in (await openapi_paths()).items()
        for operation in operations.values()
        if path.startswith(("/v1/", "/v2"))
    ]
    schemas = {path: content["application/json"]["schema"] for path, content in answers if _LINES not in content}
    described = {path: each.get("title") or each["$ref"].rpartition("/")[2] for path, each in schemas.items()}
    assert described["/v1/chat/completions"] == "Completion"
    assert described["/v2/models/{model}/infer"] == "InferAnswer"
    assert described["/v2/models/{model}/config"] == "ModelConfig"
    assert not [path for path, name in described.items() if name.startswith("Response ")], described


def holder(*roles: Role) -> ApiKey:
    return ApiKey("0123456789ab", "n", "d", datetime.now(UTC), roles=frozenset(roles))


def test_a_refusal_names_what_is_missing() -> None:
    with pytest.raises(PermissionDeniedError, match=r"needs the role operate; .* has predict, read") as caught:
        demand(holder(Role.PREDICT, Role.READ), frozenset({Role.OPERATE}), "CreateCycle")
    assert caught.value.metadata["roles"] == "operate"
    demand(holder(Role.ADMIN), frozenset({Role.OPERATE}), "CreateCycle")
    demand(holder(), None, "Check")


def test_what_no_table_names_is_for_admins() -> None:
    demand(holder(Role.ADMIN), frozenset(), "New")
    with pytest.raises(PermissionDeniedError):
        demand(holder(*(set(Role) - {Role.ADMIN})), frozenset(), "New")
