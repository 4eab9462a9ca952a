"""Tiny children for tests of the supervisor, and a supervisor of them as a process: `python tiny_stack.py STATE`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec, Program
from infra.stack.layout import Layout
from infra.stack.lifecycle import Timeouts
from infra.stack.probes import http_ok
from infra.stack.supervisor import Supervisor

QUICK = Timeouts(
    start_s=20.0,
    child_s=10.0,
    probe_s=0.05,
    watch_s=0.1,
    least_failures=2,
    kill_grace_s=0.2,
    backoff_s=0.05,
    backoff_limit_s=0.2,
    housekeeping_s=0.05,
)

# Answers every GET, with a child process of its own in the same session; notes its start and its orderly end.
SERVER = """
import http.server, os, signal, subprocess, sys
name, port, notes = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def note(what):
    with open(notes, "a") as file:
        file.write(f"{what} {name}\\n")
def end(*_):
    note("stop")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
note("start")
server.serve_forever()
"""

STUBBORN = SERVER.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
BROKEN = "import sys; print('the disk is made of cheese', flush=True); sys.exit(7)"


def layout_of(state: Path) -> Layout:
    return Layout.of(state / "home", state)


def notes_of(state: Path) -> list[str]:
    path = state / "notes"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def child(
    state: Path,
    name: str,
    code: str = SERVER,
    needs: frozenset[str] = frozenset(),
    uses: frozenset[str] = frozenset(),
    usual_port: int = 0,
) -> ChildSpec:
    def prepare(addresses: Addresses) -> Program:
        return Program(
            command=(sys.executable, "-c", code, name, str(addresses.ports[name]), str(state / "notes")),
            environment=dict(os.environ),
            folder=state,
        )

    return ChildSpec(
        name=name,
        ports={name: usual_port or 19000 + sum(name.encode())},
        prepare=prepare,
        probe=http_ok(name, "/"),
        needs=needs,
        uses=uses,
        stop_grace_s=0.5,
    )


def chain(state: Path) -> list[ChildSpec]:
    """`base` ← `middle` ← `top`."""
    return [
        child(state, "top", needs=frozenset({"middle"})),
        child(state, "middle", needs=frozenset({"base"})),
        child(state, "base"),
    ]


async def serve(state: Path) -> None:
    supervisor = Supervisor(layout_of(state), chain(state), QUICK)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.request_stop)
    await supervisor.run()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
