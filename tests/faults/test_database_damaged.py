"""Damaged databases and full disks are reported with part, cause and remedy, and not retried again and again."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from infra.stack.layout import python_path
from infra.stack.state import ChildPhase, StackPhase, read_state
from infra.stack.supervisor import Supervisor
from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.errors import DataLossError, ResourceExhaustedError, explained
from services.kit.storage.database import open_database, translate_database_errors
from tests.conftest import migrations
from tests.integration.stack.test_supervisor import assert_nothing_left, supervised, until
from tests.integration.stack.tiny_stack import QUICK, SERVER, child, layout_of
from tests.service_process import ServiceProcess

_PAGE = 4096


def opened(path: Path) -> Engine:
    return open_database(f"sqlite:///{path}", migrations("ingest"))


def filled(path: Path) -> Engine:
    engine = opened(path)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE filling (a TEXT)"))
        connection.execute(text("INSERT INTO filling VALUES (:a)"), [{"a": "x" * 1000} for _ in range(400)])
    engine.dispose()  # the last connection writes the log into the file
    return engine


def damage(path: Path) -> None:
    """Overwrites the last pages, which hold the filling."""
    with path.open("r+b") as file:
        file.seek(-20 * _PAGE, os.SEEK_END)
        file.write(os.urandom(20 * _PAGE))


def test_a_damaged_file_is_not_served_from(tmp_path: Path) -> None:
    path = tmp_path / "ingest.sqlite"
    filled(path)
    damage(path)
    with pytest.raises(DataLossError, match="restore the file from a backup") as caught:
        opened(path)
    assert caught.value.reason == "DATABASE_DAMAGED"
    assert str(path) in caught.value.message


def test_a_file_that_is_not_database_is_not_served_from(tmp_path: Path) -> None:
    path = tmp_path / "ingest.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DataLossError, match="file is not a database"):
        opened(path)


def test_damage_that_is_found_later_is_reported_in_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "ingest.sqlite"
    engine = filled(path)
    damage(path)
    with pytest.raises(DataLossError) as caught, translate_database_errors(), engine.connect() as connection:
        connection.execute(text("SELECT sum(length(a)) FROM filling")).all()
    assert caught.value.reason == "DATABASE_DAMAGED"
    engine.dispose()


def test_a_database_whose_disk_is_full_says_so(tmp_path: Path) -> None:
    engine = opened(tmp_path / "ingest.sqlite")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE filling (a TEXT)"))
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        # SQLite then behaves as on a full disk.
        connection.execute(text(f"PRAGMA max_page_count={pages + 2}"))
        with pytest.raises(ResourceExhaustedError, match="The disk is full while") as caught:
            connection.execute(text("INSERT INTO filling VALUES (:a)"), [{"a": "x" * 1000} for _ in range(400)])
    assert caught.value.reason == "DISK_FULL"
    engine.dispose()


def test_a_full_disk_is_recognized_as_the_cause_of_other_errors() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/state/x.parquet")
    wrapped = RuntimeError("writing failed")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        known = explained(error)
        assert known is not None
        assert known.reason == "DISK_FULL"
        assert "/state/x.parquet" in known.message
    native = explained(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert native is not None
    assert native.reason == "DISK_FULL"
    assert explained(ValueError("a defect")) is None


LAST_WORDS = {"reason": "DATABASE_DAMAGED", "message": "The database x is damaged: restore it.", "permanent": True}
_SAY = f"import os; open(os.environ['TIDEMILL_TERMINATION_LOG'], 'w').write('''{json.dumps(LAST_WORDS)}'''); "


async def test_a_start_that_cannot_succeed_fails_at_once_with_the_reason(tmp_path: Path) -> None:
    hopeless = child(tmp_path, "base", f"{_SAY} os._exit(1)")
    assert not await Supervisor(layout_of(tmp_path), [hopeless], QUICK).run()
    stack = read_state(layout_of(tmp_path))
    assert stack.phase is StackPhase.FAILED
    assert stack.error == "base ended: The database x is damaged: restore it."
    assert stack.children["base"].restarts == 1


async def test_what_only_a_person_can_fix_is_not_tried_over_and_over(tmp_path: Path) -> None:
    # It runs until the mark exists; then each of its starts fails for good.
    mark = tmp_path / "damaged"
    code = f"import os\nif os.path.exists({str(mark)!r}):\n    {_SAY} os._exit(1)\n{SERVER}"
    async with supervised(tmp_path, [child(tmp_path, "base", code), child(tmp_path, "other")]) as before:
        mark.touch()
        pid = before.children["base"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        after = await until(tmp_path, lambda now: now.children["base"].restarts == 2)
        assert after.children["base"].last_error == "ended: The database x is damaged: restore it."
        # Meanwhile another child is restarted many times, but this one is not.
        for restarts in range(1, 6):
            other = read_state(layout_of(tmp_path)).children["other"].pid
            assert other is not None
            os.kill(other, signal.SIGKILL)
            now = await until(
                tmp_path,
                lambda now, wanted=restarts: (  # type: ignore[misc]
                    now.children["other"].restarts == wanted and now.children["other"].phase is ChildPhase.READY
                ),
            )
        assert now.children["base"].restarts == 2
        assert now.phase is StackPhase.READY
    await assert_nothing_left(tmp_path)


def test_a_service_leaves_the_reason_of_its_end(tmp_path: Path) -> None:
    words = tmp_path / "termination-log"
    code = (
        "from services.kit.config import ServiceSettings\n"
        "from services.kit.errors import database_damaged\n"
        "from services.kit.runtime.service import run_service\n"
        "async def build(metrics):\n"
        "    raise database_damaged('/state/db/probe.sqlite', 'file is not a database')\n"
        "run_service('probe', ServiceSettings(), build)\n"
    )
    environment = {**os.environ, "PYTHONPATH": python_path(), "TIDEMILL_TERMINATION_LOG": str(words)}
    environment["TIDEMILL_STATE"] = str(tmp_path)
    environment.pop("TIDEMILL_OTLP_ENDPOINT", None)
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 1
    said = json.loads(words.read_text())
    assert said["reason"] == "DATABASE_DAMAGED"
    assert said["permanent"] is True
    assert "/state/db/probe.sqlite" in said["message"]


def test_a_full_disk_puts_no_message_aside() -> None:
    from tests.unit.kit.test_delivery_processor import BATCH, Harness

    tries: list[int] = []

    def handle(harness: Harness, batch: object) -> None:
        tries.append(1)
        if len(tries) < 6:  # what fails three times for another reason is put aside
            raise OSError(errno.ENOSPC, "No space left on device")

    harness = Harness(handle)
    harness.processor.process(BATCH[:1])
    assert harness.done == [0]
    assert harness.buried == []


@pytest.fixture(scope="module")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as stack:
        ensure_topics(stack.kafka_bootstrap)
        yield stack.kafka_bootstrap


def damage_schema(path: Path) -> None:
    """Damages a database that is in use, so that the next statement of any connection meets it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 1000000 WHERE type = 'table'")
        connection.execute(f"PRAGMA schema_version = {version + 1}")


@pytest.mark.real
@pytest.mark.parametrize("name", ["cleaning", "ingest", "pipeline", "training"])
def test_a_service_whose_database_is_damaged_ends_and_says_why(name: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    database, words = tmp_path / f"{name}.sqlite", tmp_path / "termination-log"
    service = ServiceProcess(
        name,
        tmp_path,
        {
            "TIDEMILL_KAFKA_BOOTSTRAP": kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{database}",
            "TIDEMILL_ARTIFACTS_URL": f"file://{tmp_path}/artifacts",
            "TIDEMILL_MLFLOW_URI": f"sqlite:///{tmp_path}/mlflow.db",
            "TIDEMILL_MODEL_SIGNING_KEY": f"{tmp_path}/keys/signing.pem",
            "TIDEMILL_TRUSTED_MODEL_KEYS": f"{tmp_path}/keys/trusted",
            "TIDEMILL_TERMINATION_LOG": str(words),
        },
    )
    service.start()
    try:
        assert service.process is not None
        damage_schema(database)
        # A loop of the service meets the damage, whatever it is at.
        assert service.process.wait(60) == 1
        said = json.loads(words.read_text())
        assert (said["reason"], said["permanent"]) == ("DATABASE_DAMAGED", True)
        assert str(database) in said["message"]
        assert "restore the file from a backup" in said["message"]
    finally:
        service.kill()
