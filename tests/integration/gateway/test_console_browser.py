"""The console in a real Chromium, in front of the whole gateway.

Selenium and axe are installed beside Tidemill, for their needs differ from ours. Debian's packages are `chromium` and
`chromium-driver`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tidemill.pipeline.v1.review_pb2 import REVIEW_ACTION_EDIT, REVIEW_ACTION_RELABEL
from tidemill.pipeline.v1.review_service_pb2 import SubmitReviewRequest
from tidemill.pipeline.v1.rollout_service_pb2 import RollBackRolloutRequest

from benchmarks.peers import installed
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.console_peers import reviews
from tests.unit.cli.cycles import running, succeeded

PACKAGES = ("selenium==4.51.0", "axe-core-python==0.1.0")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver on the PATH")
def test_the_console_works_in_a_browser(mesh: Mesh, tmp_path: Path) -> None:
    mesh.peers.pipeline.states = [running()]
    mesh.peers.reviews.queue = reviews()
    program = Path(__file__).with_name("browser.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    environment |= {"PYTHONPATH": str(installed("browser", PACKAGES)), "SE_OFFLINE": "true", "HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-P", str(program), str(CHROMIUM), str(DRIVER), f"http://{mesh.http}", mesh.key],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        mesh.peers.pipeline.states = [succeeded()]
        last = process.stdout.readlines()[-1]
    assert process.returncode == 0
    found = json.loads(last)
    assert found["problems"] == []
    assert found["live"] is True
    sent = [each for each in mesh.peers.seen.requests if isinstance(each, SubmitReviewRequest)]
    assert [(each.reviewer, each.action, each.target) for each in sent] == [
        ("Anna", REVIEW_ACTION_EDIT, "Rates climb, again"),
        ("Anna", REVIEW_ACTION_RELABEL, "negative"),
    ]
    [order] = [each for each in mesh.peers.seen.requests if isinstance(each, RollBackRolloutRequest)]
    assert order.reason == "worse"
    assert found["skipped"] == ["skip", "main"]
    assert found["complaints"] == []
    # Scripts cannot read the cookie, and no address has the key.
    assert "tidemill_console" not in found["cookies"]
    assert found["addresses"]
    assert not any(mesh.key in address for address in (*found["addresses"], found["rolled_back"]))
    assert found["attacked"] == "Loops · Tidemill"
    assert sum("Content Security Policy" in message for message in found["refused"]) >= 2
    assert "/console/sign-in" in found["out"]
