"""`tidemill clean bulk`: a recipe over Parquet files, in a process of its own that needs no mesh.

The process is the cleaning service's (`services.cleaning.bulk`); it speaks JSON lines. Only a recipe that is named by a
data set is asked of the mesh.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tidemill.cleaning.v1.cleaning_service_pb2 import GetDatasetRequest
from tidemill.cleaning.v1.dataset_pb2 import DatasetSpec

from gateway.cli.connection import connect
from gateway.cli.output import (
    EXIT_INTERRUPTED,
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.pipeline_file import PipelineFile, load_dataset
from gateway.cli.resource_names import dataset_name
from services.kit.config import state_dir
from services.kit.errors import InternalError, InvalidArgumentError, from_plain

_MODULE = "services.cleaning.bulk"
_PHASES = {"clean": "cleaning", "deduplicate": "operators on the whole set", "write": "writing"}
_TIMEOUT_S = 60
_RECIPES = "Recipe and columns"
_ENGINES = "Where it runs"


def bulk(
    recipe: Annotated[
        str, typer.Argument(help="A pipeline file, or a data set of the mesh: its operators.", show_default=False)
    ],
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A Parquet file, or a folder of them.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A folder that does not exist, or is empty; it appears when all is done.",
            show_default=False,
        ),
    ],
    text_column: Annotated[str, typer.Option("--text-column", help="Column with the text.")] = "text",
    id_column: Annotated[
        str,
        typer.Option(
            "--id-column",
            help="Column with the record's id; else `record_id`, or the file and the row's number.",
            show_default=False,
        ),
    ] = "",
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute",
            help="Column that becomes an attribute, repeatable; else the map or struct `attributes`, or all others.",
            show_default=False,
        ),
    ] = None,
    source_name: Annotated[
        str,
        typer.Option("--source", help="Source of rows without a column `source`; else the recipe's, if it has one."),
    ] = "",
    processes: Annotated[
        int | None, typer.Option("--processes", "-p", help="Processes; else one a processor.", min=1, max=4096)
    ] = None,
    ray_address: Annotated[
        str,
        typer.Option(
            "--ray-address", help="Use Ray Data on a cluster, host:6379; needs tidemill[bulk].", show_default=False
        ),
    ] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Cleans Parquet files by a recipe, with the same verdicts as the mesh. Nothing is sent to the mesh.

    OUT/kept has the cleaned records, OUT/rejected the others, each with the operator and the reason, OUT/manifest.json
    the counts. If it is interrupted, the same command continues.
    """
    path = Path(recipe)
    pipeline = load_dataset(path) if path.suffix in (".yaml", ".yml") or path.is_file() else None
    spec = _spec_in(pipeline) if pipeline is not None else _spec_of(recipe, address)
    default_source = spec.sources[0] if len(spec.sources) == 1 else "bulk"
    job = {
        "input": str(source),
        "output": str(output),
        "spec": as_json(spec),
        "columns": {
            "text": text_column,
            "record_id": id_column,
            "attributes": attribute or [],
            "source": source_name or default_source,
        },
        "processes": processes,
        "ray_address": ray_address,
        "pseudonym_key_file": _key_file(),
    }
    summary = _run(job, pipeline)
    if json_wanted:
        print_json(summary)
    else:
        _print(summary)


def _spec_in(pipeline: PipelineFile) -> DatasetSpec:
    dataset = pipeline.spec.dataset
    return DatasetSpec(
        sources=[each.source for each in pipeline.spec.sources],
        operators=dataset.operators,
        required_attributes=dataset.required_attributes,
    )


def _spec_of(name: str, address: str | None) -> DatasetSpec:
    with connect(address) as connection:
        request = GetDatasetRequest(name=dataset_name(name))
        return connection.cleaning.GetDataset(request, metadata=connection.metadata, timeout=_TIMEOUT_S).dataset.spec


def _key_file() -> str:
    """The secret of this machine's mesh, so that the same address gets the same token as there; empty without one."""
    if given := os.environ.get("TIDEMILL_PSEUDONYM_KEY_FILE"):
        return given
    try:
        from infra.stack.layout import Layout
    except ModuleNotFoundError:  # the extra `cli` without `stack`: no mesh on this machine
        return ""
    from services.kit.config import home_dir

    file = Layout.of(home_dir(), state_dir()).state.pseudonym_key
    return str(file) if os.access(file, os.R_OK) else ""


def _run(job: Mapping[str, Any], pipeline: PipelineFile | None) -> dict[str, Any]:
    """Runs the process to its end, with its progress on standard error.

    Raises:
        TidemillError: the job cannot be done; with the lines of the pipeline file where it is about the recipe.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    summary: dict[str, Any] | None = None
    with subprocess.Popen(
        [sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                json.dump(job, stdin)
            with Progress(*columns, console=stderr(), transient=True) as progress:
                task = progress.add_task("reading", total=None)
                for line in process.stdout:
                    said = json.loads(line)
                    if "error" in said:
                        raise _located(pipeline, said["error"])
                    summary = said.get("summary", summary)
                    if shown := said.get("progress"):
                        description = _PHASES.get(shown["phase"], shown["phase"])
                        progress.update(task, description=description, completed=shown["done"], total=shown["total"])
        except KeyboardInterrupt:
            # Ctrl-C reached the process, too; it ends what it started.
            process.wait()
            stderr().print("Interrupted. The same command continues where it was.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BaseException:
            process.terminate()
            raise
    if summary is None:
        raise InternalError(f"{_MODULE} ended with exit code {process.returncode} and without a summary.")
    return summary


def _located(pipeline: PipelineFile | None, value: Mapping[str, Any]) -> Exception:
    error = from_plain(value)
    about_recipe = isinstance(error, InvalidArgumentError) and error.reason == "INVALID_RECIPE"
    if pipeline is None or not about_recipe or not isinstance(error, InvalidArgumentError):
        return error
    return pipeline.locate(error, "dataset.")


def _print(summary: Mapping[str, Any]) -> None:
    rejected = summary["records"] - summary["kept"]
    console = stdout()
    console.print(
        f"{summary['records']:,} records of {summary['files']:,} files: {summary['kept']:,} kept, "
        f"{rejected:,} rejected.",
        soft_wrap=True,
    )
    if rejected:
        table = plain_table()
        table.add_column("reason")
        table.add_column("records", justify="right")
        for reason, count in sorted(summary["rejected_by_reason"].items(), key=lambda pair: (-pair[1], pair[0])):
            table.add_row(reason, f"{count:,}")
        print_whole(table)
    if summary["set_operators"]:
        console.print(f"Over the whole set: {', '.join(summary['set_operators'])}.", soft_wrap=True)
    if summary["reused_parts"]:
        console.print(f"{summary['reused_parts']:,} parts were already cleaned by an interrupted run.", soft_wrap=True)
    console.print(f"{summary['output']}: kept/, rejected/, manifest.json", soft_wrap=True)
