"""Every call at the doors is in the table of roles, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from opentelemetry import trace

from gateway.access import METHODS, ROUTES, demand
from gateway.facade.table import public_services
from gateway.http.app import create_app
from gateway.http.limits import BodyBudget, HttpLimits
from gateway.keys.key import ApiKey, Role
from gateway.keys.limiter import KeyLimiter
from gateway.peers import Peers
from gateway.settings import GatewaySettings
from services.kit.errors import PermissionDeniedError
from services.kit.telemetry.metrics import RequestMetrics

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


async def routes() -> set[tuple[str, str]]:
    peers = Peers.open(GatewaySettings.model_validate({}))
    door: Any = create_app(
        peers,
        None,
        KeyLimiter(),
        RequestMetrics("gateway"),
        trace.get_tracer("t"),
        BodyBudget(HttpLimits()),
    )
    found = set()
    for path, operations in door._app.openapi()["paths"].items():
        found |= {(method.upper(), path) for method in operations}
    await peers.close()
    return found


async def test_every_route_names_its_roles() -> None:
    found = {route for route in await routes() if not route[1].startswith(_DOCUMENTS)}
    assert found == set(ROUTES)


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
