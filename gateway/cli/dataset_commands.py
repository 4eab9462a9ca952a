"""`tidemill dataset`: data sets, their versions, what differs between two, and their records as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import fsspec
import typer
from rich.text import Text
from tidemill.cleaning.v1.cleaning_service_pb2 import (
    GetDatasetRequest,
    GetDatasetVersionRequest,
    ListDatasetsRequest,
    ListDatasetVersionsRequest,
)
from tidemill.cleaning.v1.dataset_pb2 import Dataset, DatasetVersion, OperatorSpec

from gateway.cli.connection import Connection, connect
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.record_changes import record_changes
from gateway.cli.resource_names import dataset_name
from gateway.cli.views.record import shown_changes
from gateway.cli.views.text import moment
from gateway.formats import drops, duration, recipe
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, not_found

if TYPE_CHECKING:
    import pyarrow as pa

_TIMEOUT_S = 60
_SPLITS = ("train", "holdout", "rejected", "corrections")
_BATCH_ROWS = 2000

dataset = typer.Typer(help="Data sets and their versions: list, show, diff, export, build, card.", no_args_is_help=True)

VersionName = Annotated[
    str,
    typer.Argument(help="A version, such as reviews/versions/2; a data set alone is its newest.", show_default=False),
]


@dataset.command("list")
@dataset.command("ls", hidden=True)
def list_datasets(address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Lists data sets by name, with their newest version."""
    with connect(address) as connection:
        found = [
            (each, _newest(connection, each.name))
            for page in pages(connection, connection.cleaning.ListDatasets, ListDatasetsRequest(page_size=1000))
            for each in page.datasets
        ]
    if json_wanted:
        print_json([as_json(each) | ({"newest": as_json(newest)} if newest else {}) for each, newest in found])
        return
    if not found:
        stdout().print("There are no data sets yet; `tidemill run PIPELINE` makes one.")
        return
    table = plain_table()
    for column in ("data set", "sources", "operators", "newest version", "records"):
        table.add_column(column, overflow="fold")
    for each, newest in found:
        table.add_row(
            each.name.removeprefix("datasets/"),
            ", ".join(each.spec.sources),
            str(len(each.spec.operators)),
            f"{_number(newest)}, {_state(newest)}" if newest else "none",
            f"{newest.train_count + newest.holdout_count:,}" if newest else "",
        )
    print_whole(table)


@dataset.command()
def show(
    name: Annotated[str, typer.Argument(help="A data set or one of its versions.", show_default=False)],
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows a data set with its recipe and versions, or one version with what was dropped and why."""
    with connect(address) as connection:
        if "/versions/" in name:
            version = find_version(connection, name)
            if json_wanted:
                print_json(as_json(version))
            else:
                print_version(version)
            return
        request = GetDatasetRequest(name=dataset_name(name))
        found = connection.cleaning.GetDataset(request, metadata=connection.metadata, timeout=_TIMEOUT_S).dataset
        versions = [
            version
            for page in pages(
                connection,
                connection.cleaning.ListDatasetVersions,
                ListDatasetVersionsRequest(dataset=found.name, page_size=1000),
            )
            for version in page.dataset_versions
        ]
    if json_wanted:
        print_json(as_json(found) | {"versions": [as_json(each) for each in versions]})
    else:
        _print_dataset(found, versions)


@dataset.command()
def diff(
    before: VersionName,
    after: VersionName,
    records: Annotated[
        int | None,
        typer.Option(
            "--records",
            min=0,
            help="Compare the records, too, and show this many of each kind: added, removed, changed, moved, rejected, "
            "accepted.",
            show_default=False,
        ),
    ] = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows what differs between two versions: sources, recipe, records, and what was dropped."""
    with connect(address) as connection:
        old, new = find_version(connection, before), find_version(connection, after)
        changes = None if records is None else record_changes(*(partial(_part, each) for each in (old, new)))
    rows = list(differences(old, new))
    if json_wanted:
        found = [{"what": what, "before": left, "after": right} for what, left, right in rows]
        if changes is None:
            print_json(found)
        else:
            shown = [asdict(each) for each in changes.first(records or 0)]
            print_json({"differences": found, "counts": changes.counts, "records": shown})
        return
    if old.digest == new.digest and old.digest:
        stdout().print(f"{old.name} and {new.name} have the same records, recipe and split.", soft_wrap=True)
        return
    table = plain_table()
    for column in ("", old.name, new.name, "change"):
        table.add_column(column, overflow="fold")
    for what, left, right in rows:
        change = f"{right - left:+,}" if isinstance(left, int) and isinstance(right, int) else ""
        table.add_row(what, _shown(left), _shown(right), change)
    print_whole(table)
    if changes is not None:
        stdout().print()
        for part in shown_changes(changes, records or 0):
            stdout().print(part)


def _part(version: DatasetVersion, part: str) -> pa.Table | None:
    """A part of a version; None if it has none."""
    try:
        return _read(version, part)
    except NotFoundError:
        if part == "train":
            raise
        return None


@dataset.command()
def export(
    name: VersionName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file: .jsonl, .csv or .parquet.", show_default=False)],
    split: Annotated[str, typer.Option("--split", help=f"Which part: {', '.join(_SPLITS)}.")] = "train",
    address: AddressOption = None,
) -> None:
    """Writes the records of a version to a file; `datasets.load_dataset` of Hugging Face reads all three formats."""
    if split not in _SPLITS:
        raise InvalidArgumentError(f"--split must be one of {', '.join(_SPLITS)}, not {split}.")
    write = _writer(out)
    try:
        with replaced(out) as file:
            with connect(address) as connection:
                version = find_version(connection, name)
            if version.state != DatasetVersion.STATE_READY:
                raise FailedPreconditionError(f"{version.name} is {_state(version)}; only a ready version has records.")
            table = _read(version, split)
            write(table, file)
    except OSError as error:
        raise InvalidArgumentError(f"{out} cannot be written: {error.strerror or error}.") from error
    stderr().print(f"{table.num_rows:,} records of {version.name} ({split}) are in {out}.", soft_wrap=True)


@contextmanager
def replaced(out: Path) -> Iterator[BinaryIO]:
    """The file, opened before `connect` makes root the mesh's user; after an error, a new file is deleted."""
    is_new = not out.exists()
    out.touch()
    with out.open("r+b") as file:
        try:
            yield file
            file.truncate()
        except BaseException:
            if is_new:
                with suppress(OSError):
                    out.unlink()
            raise


def differences(old: DatasetVersion, new: DatasetVersion) -> Iterable[tuple[str, int | str, int | str]]:
    """What differs between two versions: what it is, before, after. Counts are numbers, everything else is text."""
    if list(old.spec.sources) != list(new.spec.sources):
        yield "sources", ", ".join(old.spec.sources), ", ".join(new.spec.sources)
    recipes = [_recipe(each.spec.operators) for each in (old, new)]
    if recipes[0] != recipes[1]:
        gone = [each for each in recipes[0] if each not in recipes[1]]
        added = [each for each in recipes[1] if each not in recipes[0]]
        # The same operators in another order.
        yield "operators", "\n".join(gone or recipes[0]), "\n".join(added or recipes[1])
    if old.spec.holdout != new.spec.holdout:
        yield "hold-out", _compact(as_json(old.spec.holdout)), _compact(as_json(new.spec.holdout))
    if old.spec.augment != new.spec.augment:
        shown = [_compact(as_json(each.spec.augment)) if each.spec.HasField("augment") else "" for each in (old, new)]
        yield "augment", shown[0], shown[1]
    counts = [
        ("records in", old.records_in, new.records_in),
        ("for training", old.train_count, new.train_count),
        ("held out", old.holdout_count, new.holdout_count),
    ]
    for title, left, right in (
        ("rejected", old.rejected_by_reason, new.rejected_by_reason),
        ("feedback", old.feedback_counts, new.feedback_counts),
        ("variants", old.variant_counts, new.variant_counts),
    ):
        # `.get`, for `[]` would add the key to the message.
        counts += [(f"{title}: {key}", left.get(key, 0), right.get(key, 0)) for key in sorted({*left, *right})]
    yield from (each for each in counts if each[1] != each[2])


def _recipe(operators: Iterable[OperatorSpec]) -> list[str]:
    return [f"{name} {parameters}".rstrip() for name, parameters in recipe(operators)]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _shown(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value or "none"


def _newest(connection: Connection, name: str) -> DatasetVersion | None:
    request = ListDatasetVersionsRequest(dataset=name, page_size=1)
    call = connection.cleaning.ListDatasetVersions
    found: Sequence[DatasetVersion] = call(request, metadata=connection.metadata, timeout=_TIMEOUT_S).dataset_versions
    return found[0] if found else None


def find_version(connection: Connection, name: str) -> DatasetVersion:
    """The version of this name; the newest of a data set."""
    full = dataset_name(name)
    if "/versions/" not in full:
        newest = _newest(connection, full)
        if newest is None:
            raise not_found("version of the data set", full, "`tidemill dataset list` lists data sets.")
        return newest
    request = GetDatasetVersionRequest(name=full)
    version: DatasetVersion = connection.cleaning.GetDatasetVersion(
        request, metadata=connection.metadata, timeout=_TIMEOUT_S
    ).dataset_version
    return version


def _number(version: DatasetVersion) -> str:
    return str(version.name.rpartition("/")[2])


def _state(version: DatasetVersion) -> str:
    return DatasetVersion.State.Name(version.state).removeprefix("STATE_").lower()


def _print_dataset(found: Dataset, versions: Sequence[DatasetVersion]) -> None:
    console = stdout()
    console.print(Text(found.name, "bold cyan"))
    console.print(f"sources    {', '.join(found.spec.sources)}", soft_wrap=True)
    for number, operator in enumerate(_recipe(found.spec.operators)):
        console.print(f"{'operators' if not number else '':9}  {operator}", soft_wrap=True)
    if found.spec.HasField("augment"):
        console.print(f"augment    {_compact(as_json(found.spec.augment))}", soft_wrap=True)
    console.print(f"hold-out   {found.spec.holdout.fraction:.3g} of the records")
    table = plain_table()
    for column in ("version", "state", "in", "training", "held out", "rejected", "built"):
        table.add_column(column, justify="left" if column in ("state", "built") else "right")
    for version in versions:
        table.add_row(
            _number(version),
            _state(version),
            f"{version.records_in:,}",
            f"{version.train_count:,}",
            f"{version.holdout_count:,}",
            f"{sum(version.rejected_by_reason.values()):,}",
            f"{moment(version.create_time):%Y-%m-%d %H:%M}",
        )
    console.print()
    if versions:
        print_whole(table)
    else:
        console.print("There is no version yet.")


def print_version(version: DatasetVersion) -> None:
    """Shows a version with what was dropped and why."""
    console = stdout()
    console.print(Text.assemble((version.name, "bold cyan"), f"  {_state(version)}"))
    if version.HasField("failure"):
        console.print(version.failure.message, style="red", soft_wrap=True)
    if version.state == DatasetVersion.STATE_BUILDING:
        seconds = (version.update_time.ToNanoseconds() - version.create_time.ToNanoseconds()) / 1e9
        console.print(f"{version.progress.phase} for {duration(seconds)}")
        return
    table = plain_table()
    table.add_column("records", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    total = version.records_in or 1
    for count, what in (
        (version.records_in, "in"),
        *((count, f"rejected: {reason}") for reason, count in drops(version)),
        (version.train_count - sum(version.variant_counts.values()), "for training"),
        *((count, f"variants by {name}") for name, count in sorted(version.variant_counts.items())),
        (version.holdout_count, "held out"),
    ):
        table.add_row(f"{count:,}", f"{count / total:.1%}", what)
    print_whole(table)
    if version.withdrawn_count or version.changed_count:
        console.print(
            f"since the version before, {version.withdrawn_count:,} records are gone from their sources and "
            f"{version.changed_count:,} have changed",
            soft_wrap=True,
        )
    if dropped := version.dropped_variant_counts:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
        console.print(f"dropped    variants: {reasons}", soft_wrap=True)
    for kind, count in sorted(version.feedback_counts.items()):
        console.print(f"feedback   {kind.replace('_', ' ')}: {count:,}")
    console.print(f"digest     {version.digest}", soft_wrap=True)
    console.print(f"files      {version.uri}", soft_wrap=True)


def _read(version: DatasetVersion, split: str) -> pa.Table:
    import pyarrow.parquet as pq

    uri = f"{version.uri.rstrip('/')}/{split}.parquet"
    try:
        with fsspec.open(uri, "rb") as file:
            return pq.read_table(file)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{uri} does not exist here. A version has no file of a part without records; and its files are read where "
            "the mesh runs, or from its object store.",
            reason="SNAPSHOT_NOT_FOUND",
        ) from error
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(f"{uri} cannot be read: {error}.") from error


def _writer(out: Path) -> Callable[[pa.Table, BinaryIO], None]:
    if out.suffix not in WRITERS:
        raise InvalidArgumentError(f"--out must end with {', '.join(WRITERS)}, not {out.name}.")
    return WRITERS[out.suffix]


def _write_lines(table: pa.Table, file: BinaryIO) -> None:
    for batch in table.to_batches(_BATCH_ROWS):
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in batch.to_pylist())


def _write_csv(table: pa.Table, file: BinaryIO) -> None:
    import pyarrow.csv as pc

    pc.write_csv(table, file)


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file, compression="zstd")


WRITERS: Mapping[str, Callable[[pa.Table, BinaryIO], None]] = {
    ".jsonl": _write_lines,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""By the file's suffix."""
