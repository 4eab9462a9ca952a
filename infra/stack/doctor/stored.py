"""Checks whether databases and artefacts are intact."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from infra.stack.doctor.findings import Check, Finding, Level
from infra.stack.layout import Layout
from infra.stack.state import read_state
from services.kit.errors import FailedPreconditionError
from services.kit.storage.original_keys import key_id, read_keys
from services.kit.storage.signing import MANIFEST as _BUILD
from services.kit.storage.signing import TrustedKeys

_SNAPSHOT = "manifest.json"
_KEYS_IN_USE = (
    "SELECT key_id, count(*) FROM raw_records WHERE key_id <> '' GROUP BY key_id",
    "SELECT key_id, count(*) FROM verdicts WHERE key_id <> '' GROUP BY key_id",
)


def checks(layout: Layout) -> list[Check]:
    """All checks of stored data."""
    return [
        Check("databases", partial(_databases, layout)),
        Check("originals", partial(_originals, layout)),
        Check("snapshots", partial(_snapshots, layout)),
        Check("builds", partial(_builds, layout)),
    ]


def _databases(layout: Layout) -> Iterator[Finding]:
    files = [*sorted(layout.state.databases.glob("*.sqlite")), layout.state.mlflow]
    stopped = not read_state(layout).running
    for file in files:
        if not file.exists():
            continue
        wrong = database_faults(file)
        if not wrong:
            continue
        indexes = all("index" in line for line in wrong)
        yield Finding(
            "databases",
            Level.FAULT,
            f"{file} is damaged: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if wrong[1:] else "."),
            (
                "Only its indexes are: with the mesh stopped, `tidemill doctor --repair` builds them again."
                if indexes
                else "Stop the mesh and put the file from a backup in its place. Without one, `sqlite3 FILE .recover` "
                f"saves what can be read; if you delete the file, {file.stem} starts empty."
            ),
            partial(_reindex, file) if indexes and stopped else None,
            reason="DATABASE_DAMAGED",
        )


def _originals(layout: Layout) -> Iterator[Finding]:
    """Whether the keys are there with which cleaning encrypted what it stores."""
    file, key_file = layout.state.databases / "cleaning.sqlite", layout.state.originals_key
    if not file.exists():
        return
    used = _keys_in_use(file)
    there = {key_id(key) for key in read_keys(key_file)} if used and key_file.exists() else set()
    for key, rows in sorted(used.items()):
        if key not in there:
            yield Finding(
                "originals",
                Level.FAULT,
                f"{key_file} lacks the key {key}, with which {rows} rows of {file} are encrypted.",
                "Put the file back from a backup of the mesh's state and restart cleaning. Without it they cannot be "
                "read: import their sources again with `resend`.",
                reason="ORIGINALS_KEY_MISSING",
            )


def _keys_in_use(file: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as database:
        for query in _KEYS_IN_USE:
            try:
                for key, rows in database.execute(query):
                    counts[key] = counts.get(key, 0) + rows
            except sqlite3.DatabaseError:  # of a release without keys, or damaged, which another check says
                return {}
    return counts


def database_faults(file: Path) -> list[str]:
    """Errors that SQLite finds in a database, one per line; reads the whole file and writes nothing."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as database:
            lines = [str(row[0]) for row in database.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if lines == ["ok"] else lines


def _reindex(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("REINDEX")
    if left := database_faults(file):
        raise OSError(f"{file} is still damaged: {left[0]}")


def _snapshots(layout: Layout) -> Iterator[Finding]:
    for manifest in sorted((layout.state.artifacts / "datasets").glob(f"*/*/{_SNAPSHOT}")):
        folder = manifest.parent
        try:
            files = {name: str(each["sha256"]) for name, each in json.loads(manifest.read_bytes())["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield _damaged("snapshots", folder, f"{_SNAPSHOT} cannot be read ({error})")
            continue
        for name, expected in files.items():
            if wrong := _wrong(folder / name, expected):
                yield _damaged("snapshots", folder, wrong)


def _builds(layout: Layout) -> Iterator[Finding]:
    keys = TrustedKeys(layout.state.model_keys / "trusted")
    for manifest in sorted(layout.state.artifacts.rglob(_BUILD)):
        folder = manifest.parent
        try:
            expected = json.loads(manifest.read_bytes())["digest"]
        except (ValueError, KeyError, TypeError) as error:
            yield _damaged("builds", folder, f"{_BUILD} cannot be read ({error})")
            continue
        try:
            keys.verify_build(folder, expected)
        except FailedPreconditionError as error:
            yield _finding("builds", error.message)


def _wrong(path: Path, expected: str) -> str:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror or error})"
    return "" if found == expected else f"{path.name} is not what was written"


def _damaged(check: str, folder: Path, what: str) -> Finding:
    return _finding(check, f"{folder} is damaged: {what}.")


def _finding(check: str, message: str) -> Finding:
    again = "Build the data set again" if check == "snapshots" else "Train it again, or publish another build"
    return Finding(
        check,
        Level.FAULT,
        message,
        f"{again}; move the folder elsewhere first, or restore it from a backup.",
        reason="SNAPSHOT_DAMAGED" if check == "snapshots" else "",
    )
