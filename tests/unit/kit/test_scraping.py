"""A process's counters: they can only be read with the token of the mesh."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.telemetry.metrics import RequestMetrics
from services.kit.telemetry.scraping import ScrapeToken
from tests.service_process import free_port


def served(token: ScrapeToken | None) -> str:
    port = free_port()
    metrics = RequestMetrics("probe", token=token)
    metrics.observe("Call", 0.1, "OK")
    metrics.serve(f"127.0.0.1:{port}")
    return f"http://127.0.0.1:{port}/metrics"


def test_a_new_token_is_valid_at_once_and_the_old_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    url = served(ScrapeToken(file))
    assert httpx.get(url).status_code == 401
    assert 'endpoint="Call"' in httpx.get(url, headers={"Authorization": "Bearer first"}).text
    file.write_text("second")
    assert httpx.get(url, headers={"Authorization": "Bearer first"}).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer second"}).status_code == 200
    file.unlink()
    for word in ("second", ""):
        assert httpx.get(url, headers={"Authorization": f"Bearer {word}".strip()}).status_code == 401


def test_without_a_token_anyone_who_reaches_the_port_may_read() -> None:
    assert 'endpoint="Call"' in httpx.get(served(None)).text


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_invalid_token_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(FailedPreconditionError, match="TIDEMILL_METRICS_TOKEN_FILE"):
        ScrapeToken(tmp_path / "token")


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FailedPreconditionError, match=address):
            RequestMetrics("probe").serve(address)
