"""Whether a database has the schema that this release's code expects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory

from infra.stack.doctor.findings import Finding, Level
from infra.stack.doctor.stores import Database

_VERSION = "SELECT version_num FROM {schema}alembic_version"

Query = Callable[[str], Iterable[Sequence[Any]]]
"""Runs a statement in which `{schema}` stands before each table."""


def revision_findings(
    database: Database, place: str, revisions: Sequence[str], running: bool, backup: str
) -> Iterator[Finding]:
    """What is wrong with the schema of a service.

    Args:
        database: the service's.
        place: its name for people.
        revisions: what `revisions_of` found.
        running: whether the mesh runs.
        backup: what makes a backup of it.
    """
    config = Config()
    config.set_main_option("script_location", str(database.migrations))
    scripts = ScriptDirectory.from_config(config)
    known, head = {script.revision for script in scripts.walk_revisions()}, scripts.get_current_head()
    for revision in revisions:
        if revision not in known:
            yield Finding(
                "databases",
                Level.FAULT,
                f"{place} has the revision {revision}, which this release does not know: a newer one wrote it.",
                f"{database.service} does not start with it. Install the newer release again, or restore the backup "
                "from before its first start; it cannot be taken back from here.",
            )
        elif revision != head:
            yield Finding(
                "databases",
                Level.NOTICE,
                f"{place} has the revision {revision}; this release expects {head}.",
                "The mesh that runs is of an earlier release: `tidemill down`, back it up, then `tidemill up`."
                if running
                else f"`tidemill up` brings it there. Back it up before ({backup}): there is no way back.",
            )


def revisions_of(query: Query) -> Sequence[str]:
    """The revisions in Alembic's table."""
    return [str(row[0]) for row in query(_VERSION)]
