"""`tidemill dataset build` and `card`: a version of a data set without training, and what it consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from tidemill.cleaning.v1.cleaning_service_pb2 import (
    AwaitedImport,
    BuildDatasetVersionRequest,
    GetDatasetCardRequest,
    PutDatasetRequest,
    WatchDatasetVersionRequest,
)
from tidemill.cleaning.v1.dataset_pb2 import DatasetSpec, DatasetVersion
from tidemill.ingest.v1.ingest_service_pb2 import CreateImportRequest
from tidemill.ingest.v1.source_import_pb2 import Import

from gateway.cli.connection import Connection, connect
from gateway.cli.dataset_commands import VersionName, dataset, find_version, print_version, replaced
from gateway.cli.file_inputs import AllowOption, make_readable
from gateway.cli.import_view import imported, states
from gateway.cli.output import EXIT_INTERRUPTED, AddressOption, JsonOption, as_json, print_json, stderr, stdout
from gateway.cli.pipeline_file import PipelineFile, load_dataset
from gateway.cli.source_commands import put_source
from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from services.kit.ids import new_id

__all__ = ["dataset"]

_TIMEOUT_S = 120
_LOST = "RECORDS_LOST"
_CARDS = {".md": "markdown", ".html": "html"}


@dataset.command()
def build(
    file: Annotated[
        Path,
        typer.Argument(help="A pipeline file; training, gate and rollout may be absent.", show_default=False),
    ],
    more: AllowOption = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Collects the sources of a file and builds a version of its data set, without training.

    Started again with unchanged sources it finds the same version.
    """
    loaded, console = load_dataset(file), stderr()
    if loaded.spec.HasField("feedback"):
        raise loaded.locate(
            InvalidArgumentError(
                "The file has feedback.",
                violations=[
                    FieldViolation(
                        "feedback", "only cycles build a data set with feedback; use `tidemill run`, or remove it."
                    )
                ],
            )
        )
    make_readable(loaded, more or (), address)
    try:
        with connect(address) as connection:
            version = _build(connection, loaded, console)
    except KeyboardInterrupt:
        console.print("\nYou stopped watching; what has begun continues. The same command joins it.", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if json_wanted:
        print_json(as_json(version))
    else:
        print_version(version)


@dataset.command()
def card(
    name: VersionName,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file: .md or .html; Markdown here by default.")
    ] = None,
    address: AddressOption = None,
) -> None:
    """Describes a version: lengths, languages, labels, and what was rejected and why. It shows no text of a record."""
    if out is not None and out.suffix not in _CARDS:
        raise InvalidArgumentError(f"--out must end with {' or '.join(_CARDS)}, not {out.name}.")
    if out is None:
        stdout().print(_card(address, name).markdown, soft_wrap=True)
        return
    try:
        with replaced(out) as written:
            written.write(getattr(_card(address, name), _CARDS[out.suffix]).encode())
    except OSError as error:
        raise InvalidArgumentError(f"{out} cannot be written: {error.strerror or error}.") from error
    stderr().print(f"The card is in {out}.", soft_wrap=True)


def _card(address: str | None, name: str) -> Any:
    with connect(address) as connection:
        request = GetDatasetCardRequest(name=find_version(connection, name).name)
        return connection.cleaning.GetDatasetCard(request, metadata=connection.metadata, timeout=_TIMEOUT_S)


def _build(connection: Connection, file: PipelineFile, console: Console) -> DatasetVersion:
    spec = file.spec
    wanted = DatasetSpec(
        sources=list(dict.fromkeys(source.source for source in spec.sources)),
        operators=spec.dataset.operators,
        holdout=spec.dataset.holdout,
        required_attributes=spec.dataset.required_attributes,
        tenants=spec.dataset.tenants,
        pushed_sources=list(dict.fromkeys(s.source for s in spec.sources if s.HasField("pushed"))),
    )
    if spec.dataset.HasField("augment"):
        wanted.augment.CopyFrom(spec.dataset.augment)
    try:
        with connection.errors():
            request = PutDatasetRequest(request_id=new_id(), name=spec.dataset.name, spec=wanted)
            connection.cleaning.PutDataset(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
    except InvalidArgumentError as error:
        raise file.locate(error, "dataset.") from error
    pulled = [number for number, source in enumerate(spec.sources) if not source.HasField("pushed")]
    for number, source in enumerate(spec.sources):
        if source.HasField("pushed"):
            # Its policy holds from its declaration on.
            put_source(connection, file, number)
    begun = [_import(connection, file, number) for number in pulled]
    imports = [imported(connection, each, console) for each in begun]
    version = _built(connection, spec.dataset.name, imports, console)
    if version.failure.reason == _LOST:
        console.print("The bus lost records; their sources are pulled again.", style="yellow")
        for at, each in enumerate(imports):
            if each.name in version.failure.metadata:
                imports[at] = imported(connection, _import(connection, file, pulled[at], resend=True), console)
        version = _built(connection, spec.dataset.name, imports, console)
    if version.state != DatasetVersion.STATE_READY:
        raise FailedPreconditionError(
            version.failure.message or f"{version.name} was cancelled by someone else; build it again.",
            reason=version.failure.reason or "WORK_CANCELLED",
        )
    return version


def _import(connection: Connection, file: PipelineFile, number: int, *, resend: bool = False) -> Import:
    request = CreateImportRequest(request_id=new_id(), spec=file.spec.sources[number], resend=resend)
    request.spec.ClearField("collect")
    try:
        with connection.errors():
            answer = connection.ingest.CreateImport(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
            return answer.source_import
    except InvalidArgumentError as error:
        raise file.locate(error, f"sources[{number}].") from error


def _built(connection: Connection, name: str, imports: list[Import], console: Console) -> DatasetVersion:
    awaited = [
        AwaitedImport(
            name=each.name,
            record_count=each.record_count,
            withdrawn_count=each.withdrawn_count,
            changed_count=each.changed_count,
        )
        for each in imports
    ]
    request = BuildDatasetVersionRequest(request_id=new_id(), dataset=name, awaited_imports=awaited)
    answer = connection.cleaning.BuildDatasetVersion(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
    version: DatasetVersion = answer.dataset_version
    with console.status(f"building {version.name}") as shown:
        call, watched = connection.cleaning.WatchDatasetVersion, WatchDatasetVersionRequest(name=version.name)
        for state in states(connection, call, watched, lambda answer: answer.dataset_version.state):
            version = state.dataset_version
            progress = version.progress
            shown.update(f"building {version.name}: {progress.phase} {progress.done:,} of {progress.total:,}")
    return version
