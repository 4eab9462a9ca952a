"""`tidemill clean preview` and `tidemill explain`: what a recipe does to texts, and what became of a record."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from tidemill.cleaning.v1.cleaning_service_pb2 import (
    CleanTextRequest,
    CleanTextResponse,
    ExplainRecordRequest,
    ExplainRecordResponse,
)
from tidemill.inference.v1.inference_service_pb2 import ListModelsRequest, ListModelVersionsRequest

from gateway.cli.clean_bulk import bulk
from gateway.cli.connection import Connection, connect
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    print_json,
    print_json_line,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.pipeline_file import PipelineFile, load_dataset
from gateway.cli.resource_names import dataset_name
from gateway.cli.views.record import explanation
from gateway.cli.views.record import preview as record_preview
from services.kit.errors import FieldViolation, InvalidArgumentError, UnavailableError
from services.kit.ids import parts_of_record_name

_TIMEOUT_S = 60
_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")

clean = typer.Typer(help="What a recipe does to texts.", no_args_is_help=True)
clean.command()(bulk)


@dataclass(frozen=True, slots=True)
class Sample:
    """One text of a file, to be cleaned."""

    line: int
    text: str
    attributes: dict[str, str] = field(default_factory=dict)


@clean.command()
def preview(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A pipeline file, of which sources and dataset are enough, or a data set of the mesh.",
            show_default=False,
        ),
    ],
    file: Annotated[
        str,
        typer.Argument(
            help="JSON lines with `text` (other members are attributes), else a text on each line; - for standard "
            "input.",
            show_default=False,
        ),
    ],
    limit: Annotated[int, typer.Option("--limit", "-n", help="Maximum texts to clean.", min=1)] = 20,
    changed: Annotated[bool, typer.Option("--changed", help="Show only what is changed or rejected.")] = False,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows texts before and after a recipe, and which operator made each change. Nothing is stored."""
    pipeline = recipe_file(recipe)
    # Before `connect`: if root runs this, the mesh's user may not be able to read the file.
    samples = list(islice(read_samples(file), limit))
    if not samples:
        raise InvalidArgumentError(f"{file} has no text to clean.")
    counts: Counter[str] = Counter()
    console = stdout()
    with connect(address) as connection:
        for sample in samples:
            cleaned = _cleaned(connection, recipe, pipeline, sample)
            kind = "rejected" if cleaned.rejected_reason else "changed" if cleaned.effects else "unchanged"
            counts[kind] += 1
            if changed and kind == "unchanged":
                continue
            if json_wanted:
                print_json_line({"line": sample.line, "before": sample.text, **as_json(cleaned)})
            else:
                console.print(record_preview(f"line {sample.line}", sample.text, cleaned, console.width))
    if json_wanted:
        return
    console.print(
        f"\n{len(samples):,} texts: {counts['changed']:,} changed, {counts['rejected']:,} rejected, "
        f"{counts['unchanged']:,} unchanged. Operators on the whole set (exact_dedup) run when a version is built.",
        soft_wrap=True,
    )


def explain(
    record: Annotated[
        str, typer.Argument(help="A record's id, or its name sources/SOURCE/records/RECORD.", show_default=False)
    ],
    source: Annotated[
        str, typer.Option("--source", help="Its source, if several have a record of this id.", show_default=False)
    ] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows a record's way: its source, what each operator did, the data sets and the models that learnt from it."""
    if named := parts_of_record_name(record):
        given, record = named
        if source and source != given:
            raise InvalidArgumentError(f"--source says {source}, but the record's name says {given}; give one of them.")
        source = given
    with connect(address) as connection:
        request = ExplainRecordRequest(record_id=record, source=source)
        found = connection.cleaning.ExplainRecord(request, metadata=connection.metadata, timeout=_TIMEOUT_S)
        try:
            with connection.errors():
                models: dict[str, list[str]] | None = _models(connection, found)
        except UnavailableError as error:
            # A mesh that only collects and cleans has no inference service.
            models = None
            note = f"Which models learnt from it cannot be said: {error.message}"
            stderr().print(note, style="yellow", soft_wrap=True)
    if json_wanted:
        print_json(as_json(found) | ({} if models is None else {"models": models}))
    else:
        print_whole(explanation(found, models))


def _models(connection: Connection, found: ExplainRecordResponse) -> dict[str, list[str]]:
    """Model versions by the data set's version that taught them, for the versions that have the record."""
    versions: dict[str, list[str]] = {each.dataset_version: [] for each in found.datasets if each.dataset_version}
    if not versions:
        return versions
    for page in pages(connection, connection.inference.ListModels, ListModelsRequest(page_size=1000)):
        for model in page.models:
            request = ListModelVersionsRequest(model=model.name, page_size=1000)
            for listed in pages(connection, connection.inference.ListModelVersions, request):
                for version in listed.model_versions:
                    if version.dataset_version in versions:
                        versions[version.dataset_version].append(version.name)
    return versions


def recipe_file(recipe: str) -> PipelineFile | None:
    """The pipeline file that a person named; None for the name of a data set."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return load_dataset(path)
    return None


def _cleaned(connection: Connection, recipe: str, pipeline: PipelineFile | None, sample: Sample) -> CleanTextResponse:
    request = CleanTextRequest(text=sample.text, attributes=sample.attributes, explain=True)
    if pipeline is None:
        request.dataset = dataset_name(recipe)
    else:
        request.operators.extend(pipeline.spec.dataset.operators)
        if pipeline.spec.dataset.HasField("augment"):
            request.augment.CopyFrom(pipeline.spec.dataset.augment)
    try:
        with connection.errors():
            answer: CleanTextResponse = connection.cleaning.CleanText(
                request, metadata=connection.metadata, timeout=_TIMEOUT_S
            )
            return answer
    except InvalidArgumentError as error:
        if pipeline is None or not any(each.field.startswith(("operators", "augment")) for each in error.violations):
            raise
        in_file = [FieldViolation(f"dataset.{each.field}", each.description) for each in error.violations]
        raise pipeline.locate(InvalidArgumentError(error.message, violations=in_file)) from error


def read_samples(file: str) -> Iterator[Sample]:
    """The texts of a file, or of standard input for `-`; blank lines are left out.

    Raises:
        InvalidArgumentError: it cannot be read, or a line is not valid; names the line.
    """
    in_json = Path(file).suffix in _LINES_SUFFIXES
    try:
        content = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise InvalidArgumentError(f"{file} cannot be read: {error.strerror}.") from error
    # Only a line feed ends a line: a text may contain the other characters at which `splitlines` splits.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield _sample(file, number, line) if in_json else Sample(number, line)


def _sample(file: str, number: int, line: str) -> Sample:
    where = f"{file}, line {number}"
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise InvalidArgumentError(f"{where} is not JSON: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not value["text"]:
        raise InvalidArgumentError(
            f"{where}: `text` must be a text that is not empty.",
            violations=[FieldViolation("text", "must be a text that is not empty")],
        )
    attributes = {
        name: member if isinstance(member, str) else json.dumps(member, ensure_ascii=False)
        for name, member in value.items()
        if name not in ("text", "id") and member is not None
    }
    return Sample(number, value["text"], attributes)
