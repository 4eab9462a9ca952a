"""The supervisor process: `python -m infra.stack --state DIR [--home DIR] [--only kafka,triton]`.

`infra.stack.client` starts it in the background; it can be run in the foreground, too. If root starts it, it continues
as the mesh's user. It stops on SIGTERM or SIGINT.

It ends with 0 after an orderly stop, 1 when the stack could not start, 3 when another supervisor has the state folder.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

from infra.stack import certificates
from infra.stack import process as processes
from infra.stack.layout import Layout
from infra.stack.lock import AlreadyRunningError
from infra.stack.mesh_user import become_mesh_user
from infra.stack.private import UMASK, private_folder
from infra.stack.supervisor import Supervisor
from infra.stack.topology import NAMES, scalings, specs, windows
from services.kit.config import disk_reserve, home_dir, state_dir
from services.kit.errors import TidemillError

EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 3


def main(arguments: list[str] | None = None) -> int:
    """Runs the supervisor; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description="Runs a mesh on this machine.")
    parser.add_argument("--home", type=Path, default=home_dir(), help="downloads and prepared parts")
    parser.add_argument("--state", type=Path, default=state_dir(), help="this mesh's state")
    parser.add_argument("--only", help=f"comma-separated names out of {', '.join(NAMES)}; all when left out")
    parser.add_argument("--log", action="store_true", help="write to the state's logs/supervisor.log from here on")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    layout = Layout.of(options.home, options.state)
    only = [name for name in options.only.split(",") if name] if options.only is not None else None
    try:
        disk_reserve()  # refuses a wrong value now, not while the mesh starts
        become_mesh_user(layout)
        if options.log:
            _write_to(layout.state.logs / "supervisor.log")
        chores = () if os.environ.get("TIDEMILL_PEER_CERT") else (partial(certificates.place, layout.state.peer_keys),)
        supervisor = Supervisor(
            layout, specs(layout, only), chores=chores, scalings=scalings(layout, only), windows=windows()
        )
        return asyncio.run(_run(supervisor))
    except AlreadyRunningError as error:
        logging.error("%s", error.message)
        return EXIT_ALREADY_RUNNING
    except TidemillError as error:
        logging.error("%s", error.message)
        return EXIT_FAILED
    except OSError as error:
        logging.error("The state folder %s cannot be used: %s", layout.state.root, error)
        return EXIT_FAILED


def _write_to(log: Path) -> None:
    """Standard output and error go to the log from now on, those of its children included."""
    os.umask(UMASK)
    private_folder(log.parents[1])
    log.parent.mkdir(exist_ok=True)
    processes.rotate(log)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)
    os.chdir(log.parents[1])


async def _run(supervisor: Supervisor) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.request_stop)
    return 0 if await supervisor.run() else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
