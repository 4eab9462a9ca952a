"""Elasticsearch has the logs and no security of its own: other users can only reach its guard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from infra.stack import client
from infra.stack.process import can_isolate, tagged
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from tests.faults.strangers import open_folder, reads

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stack() -> Iterator[StackState]:
    if not can_isolate():
        pytest.skip("this machine's kernel does not let this user have a network of its own")
    with open_folder() as folder, running_parts({"elasticsearch"}, folder / "state", own=True) as running:
        yield running


def call(stack: StackState, method: str, path: str, **options: object) -> httpx.Response:
    with httpx.Client(base_url=f"http://{stack.address('elasticsearch')}", timeout=20, trust_env=False) as http:
        return http.request(method, path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/_search"), ("GET", "/_cat/indices"), ("DELETE", "/*"), ("POST", "/stolen/_doc"), ("GET", "/")],
)
@pytest.mark.parametrize("auth", [None, ("tidemill", "tidemill"), ("elastic", "changeme")])
def test_a_stranger_is_refused(stack: StackState, method: str, path: str, auth: tuple[str, str] | None) -> None:
    answer = call(stack, method, path, auth=auth)
    assert answer.status_code == 401
    assert "WWW-Authenticate" in answer.headers


def test_every_request_of_a_connection_is_asked(stack: StackState) -> None:
    """The password of one request does not count for the next request on the same connection."""
    secret = ("tidemill", stack.layout.state.elasticsearch_password.read_text())
    with httpx.Client(base_url=f"http://{stack.address('elasticsearch')}", timeout=20, trust_env=False) as http:
        assert http.get("/_cluster/health", auth=secret).status_code == 200
        assert http.get("/_cluster/health").status_code == 401


def test_the_meshs_user_works_through_the_guard(stack: StackState) -> None:
    assert client.status(stack.state, stack.home).children["elasticsearch"].healthy
    with httpx.Client(base_url=stack.elasticsearch_url, timeout=30, trust_env=False) as http:
        lines = "".join(f'{{"index":{{}}}}\n{{"message":"{"tide " * 50}{number}"}}\n' for number in range(20_000))
        bulk = http.post("/logs/_bulk?refresh=true", content=lines, headers={"Content-Type": "application/x-ndjson"})
        assert bulk.json()["errors"] is False
        assert http.get("/logs/_count").json()["count"] == 20_000
        assert http.head("/logs").status_code == 200
        assert http.get("/absent/_search").status_code == 404


def test_the_node_has_no_port_on_this_machine_but_the_guards(stack: StackState) -> None:
    """The node listens only in a network of its own, as /proc/PID/net shows."""
    ours = {process.pid for process in tagged(stack.state)}
    listening = [each for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert {each.laddr[1] for each in listening if each.pid in ours and each.laddr} == {stack.ports["elasticsearch"]}
    pid = stack.children["elasticsearch"].pid
    assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def test_the_password_is_in_a_file_that_no_one_else_reads(stack: StackState) -> None:
    assert not reads(stack.layout.state.elasticsearch_password)
