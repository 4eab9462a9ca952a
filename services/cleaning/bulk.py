"""Composition root of `tidemill clean bulk`: `python -m services.cleaning.bulk`, in a process of its own.

Reads a job as one JSON object from standard input: `input`, `output`, `spec` (tidemill.cleaning.v1.DatasetSpec),
`columns`, `processes`, `ray_address`, `pseudonym_key_file`. Writes JSON lines to standard output:
`{"progress": …}`, at the end `{"summary": …}`, or `{"error": …}` and exit code 1. It needs no mesh.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError, InvalidArgumentError, as_plain

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Runs one job."""
    # Libraries print to standard output, which is for the caller alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        # Ends what it started, in the blocks that hold it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

        def say(line: dict[str, Any]) -> None:
            answers.write(json.dumps(line, ensure_ascii=False) + "\n")
            answers.flush()

        try:
            run(json.load(sys.stdin), say)
        except ModuleNotFoundError as error:
            missing = FailedPreconditionError(f"{error}. Install tidemill[cleaning].", reason="EXTRA_MISSING")
            say({"error": as_plain(missing)})
            sys.exit(1)
        except (BrokenPipeError, KeyboardInterrupt):
            # The caller has ended, or was interrupted itself.
            sys.exit(1)
        except Exception as error:
            say({"error": as_plain(error)})
            sys.exit(1)


def run(job: dict[str, Any], say: Say) -> None:
    """Runs a job.

    Raises:
        TidemillError: it cannot be done; what is finished is kept for the next run.
    """
    from google.protobuf import json_format
    from tidemill.cleaning.v1 import dataset_pb2

    from services.cleaning.adapters.bulk_engines import BulkJob, ProcessEngine, RayEngine, recipe_of
    from services.cleaning.adapters.bulk_files import BulkFolder, PartCleaner, plan
    from services.cleaning.adapters.bulk_rows import Columns
    from services.cleaning.adapters.pseudonym_key import read_pseudonym_key
    from services.cleaning.app.bulk import clean_in_bulk
    from services.cleaning.entrypoints.mapping import spec_from

    source, output = Path(job["input"]).absolute(), Path(job["output"]).absolute()
    if output == source or output in source.parents or source in output.parents:
        raise InvalidArgumentError(f"{output} and {source} lie in each other; name another folder for the output.")
    spec = spec_from(json_format.ParseDict(job["spec"], dataset_pb2.DatasetSpec()))
    given = job["columns"]
    columns = Columns(given["text"], given["record_id"], tuple(given["attributes"]), given["source"])
    key_file = job["pseudonym_key_file"]
    key = read_pseudonym_key(Path(key_file) if key_file else None)
    recipe = recipe_of(spec, key)
    parts = plan(source, columns, recipe.digest)
    folder = BulkFolder(output)
    with folder.opened():
        work = BulkJob(spec, recipe.digest, PartCleaner(str(source), str(folder.partial), columns), key)
        engine = (
            RayEngine(work, job["processes"], job["ray_address"])
            if job["ray_address"]
            else ProcessEngine(work, job["processes"] or _processors())
        )

        def progressed(phase: str, done: int, total: int) -> None:
            say({"progress": {"phase": phase, "done": done, "total": total}})

        summary = clean_in_bulk(recipe, parts, folder, engine, progressed)
    say({"summary": {**asdict(summary), "files": len({part.file for part in parts}), "output": str(output)}})


def _processors() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
