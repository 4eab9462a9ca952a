"""Alertmanager's webhook at the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from gateway.keys.key import Role
from services.kit.telemetry import schema
from tests.integration.gateway.conftest import Mesh
from tests.service_process import free_port
from tests.waiting import wait_until

RULES = Path(__file__).parents[3] / "infra" / "prometheus"

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


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")),
    reason="Debian's prometheus and prometheus-alertmanager are not installed",
)
def test_an_alert_of_a_real_prometheus_fires_and_is_resolved(mesh: Mesh, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    found = Gauge(schema.DRIFT_FOUND, "x", ("pipeline", "signal"), registry=registry).labels("headlines", "input")
    found.set(1)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    _, key = mesh.store.create("alertmanager", {Role.OPERATE})
    (tmp_path / "key").write_text(key)
    own = json.loads(json.dumps(yaml.safe_load((RULES / "alertmanager.yml").read_text())))
    hook = own["receivers"][0]["webhook_configs"][0]
    hook["url"] = f"http://{mesh.http}/v1/alerts"
    hook["http_config"]["authorization"]["credentials_file"] = str(tmp_path / "key")
    own["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(own))
    ports = free_port(), free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "rules.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]},
        "scrape_configs": [
            {"job_name": "t", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]},
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    commands = (
        ("prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
         f"--web.listen-address=127.0.0.1:{ports[0]}", "--rules.alert.resend-delay=1s"),
        ("prometheus-alertmanager", f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/am",
         f"--web.listen-address=127.0.0.1:{ports[1]}", "--cluster.listen-address="),
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(server.shutdown)
        for command in commands:
            log = stack.enter_context((tmp_path / f"{command[0]}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)

        def reported(resolved: bool) -> Any:
            asked = [item for item in mesh.peers.seen.requests if type(item).__name__ == "ReportAlertsRequest"]
            ours = [alert for item in asked for alert in item.alerts if alert.fingerprint != "5ef77f1f8a3ecfbc"]
            return next((alert for alert in ours if alert.resolved is resolved), None)

        fired = wait_until(lambda: reported(False), "an alert", 60)
        assert (fired.name, fired.pipeline) == ("TidemillDrift", "pipelines/headlines")
        assert fired.summary == "The input of headlines drifted from what its model learnt."
        found.set(0)
        over = wait_until(lambda: reported(True), "its end", 60)
        assert (over.fingerprint, over.start_time) == (fired.fingerprint, fired.start_time)
