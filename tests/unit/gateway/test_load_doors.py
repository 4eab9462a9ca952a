"""The callers of `tests/load` use every way into a mesh that serves its callers."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.access import METHODS, ROUTES
from gateway.keys.key import Role
from services.kit.bus.topics import TOPICS
from tests.load.callers import DOORS

CALLERS = frozenset({Role.PREDICT, Role.INGEST})
"""Roles of those who send data and ask models; those who operate a mesh bring no load."""

WITHOUT_DOOR: Mapping[str, str] = {
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "describes the API to tools",
}
"""What no door calls, and why."""


def wanted() -> set[str]:
    """Every HTTP route and RPC that a caller's role may call, every other POST, and the topics of other producers.

    `test_access.py` holds the tables against the routes of the application and the descriptors of the protos.
    """
    routes = {
        f"{method} {path}"
        for (method, path), roles in ROUTES.items()
        if method == "POST" or (roles and roles & CALLERS)
    }
    methods = {path for path, roles in METHODS.items() if roles and roles & CALLERS}
    return routes | methods | {topic.name for topic in TOPICS if topic.name.endswith(".inbound")}


def test_every_way_in_has_a_door_under_load() -> None:
    called = {endpoint for door in DOORS.values() for endpoint in door.endpoints}
    assert wanted() - called == set(WITHOUT_DOOR)
    assert called - wanted() == set(), "doors to nowhere"


def test_every_door_says_what_it_calls() -> None:
    assert [name for name, door in DOORS.items() if not door.endpoints] == []
