"""Alertmanager's webhook at the gateway."""

from __future__ import annotations

from typing import Any

import httpx

from gateway.keys.key import Role
from tests.integration.gateway.conftest import Mesh

# As Alertmanager 0.25 sends it.
BODY: dict[str, Any] = {
    "receiver": "tidemill",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "TidemillDrift", "pipeline": "headlines", "severity": "warning"},
            "annotations": {"summary": "What headlines is asked has drifted."},
            "startsAt": "2026-03-02T12:00:00.123Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph",
            "fingerprint": "5ef77f1f8a3ecfbc",
        },
        {
            "status": "resolved",
            "labels": {"alertname": "TidemillErrors", "service_name": "gateway"},
            "annotations": {},
            "startsAt": "2026-03-02T11:00:00Z",
            "endsAt": "2026-03-02T11:30:00Z",
            "generatorURL": "",
            "fingerprint": "0123456789abcdef",
        },
    ],
    "groupLabels": {},
    "commonLabels": {},
    "commonAnnotations": {},
    "externalURL": "http://alertmanager:9093",
    "version": "4",
    "groupKey": "{}:{}",
    "truncatedAlerts": 0,
}


def post(mesh: Mesh, body: Any, *roles: Role) -> httpx.Response:
    _, key = mesh.store.create("alertmanager", set(roles))
    return httpx.post(f"http://{mesh.http}/v1/alerts", json=body, headers={"authorization": f"Bearer {key}"})


def test_alerts_about_pipelines_reach_their_triggers(mesh: Mesh) -> None:
    answer = post(mesh, BODY, Role.OPERATE)
    assert (answer.status_code, answer.json()) == (200, {"taken": 1, "received": 2})
    (alert,) = mesh.peers.seen.requests[-1].alerts
    assert (alert.name, alert.pipeline, alert.fingerprint) == (
        "TidemillDrift",
        "pipelines/headlines",
        "5ef77f1f8a3ecfbc",
    )
    assert (alert.resolved, alert.summary) == (False, "What headlines is asked has drifted.")
    assert alert.start_time.ToJsonString() == "2026-03-02T12:00:00.123Z"


def test_only_a_key_that_operates_may_report_alerts(mesh: Mesh) -> None:
    asked = len(mesh.peers.seen.requests)
    assert post(mesh, BODY, Role.PREDICT, Role.INGEST, Role.READ).status_code == 403
    wrong = {**BODY, "alerts": [{**BODY["alerts"][0], "startsAt": "noon"}]}
    refused = post(mesh, wrong, Role.OPERATE)
    assert refused.status_code == 400
    assert "alerts[0].startsAt" in refused.json()["error"]["message"]
    assert len(mesh.peers.seen.requests) == asked
