"""Files of a bulk run: Parquet in, a folder of Parquet out, which appears whole.

    OUT/kept/part-00000.parquet       record_id, source, text, attributes (a map)
    OUT/rejected/part-00000.parquet   record_id, source, reason, detail, operator
    OUT/manifest.json                 recipe, counts, and the digest of each file

Until then everything is in `.OUT.partial` beside it. The report of a part is written after its files, so a part with
a report is whole, and the next run of the same command continues after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cleaning.adapters.bulk_rows import ATTRIBUTES, BATCH_ROWS, Columns, Row, layout_of, rows_of
from services.cleaning.app.bulk import FORMAT, Part, PartReport
from services.cleaning.domain.record import Cleaned, Rejection
from services.cleaning.engine.compiler import CompiledRecipe
from services.cleaning.engine.operator import SetRecord
from services.kit.errors import AbortedError, AlreadyExistsError, DataLossError, InvalidArgumentError
from services.kit.ids import content_digest
from services.kit.whole_files import replace_text, replacing

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
_KEPT, _REJECTED, _REPORTS, _OUTPUT = "kept", "rejected", "reports", "output"
_PART_BYTES = 32 << 20
"""Uncompressed bytes of rows from which a part is large enough; a part has at least one row group."""
_PART_ROWS = 50_000


def input_files(path: Path) -> list[Path]:
    """The Parquet files of a folder and those below it, in order, or the one file.

    Raises:
        InvalidArgumentError: there are none.
    """
    if path.is_dir():
        found = sorted(
            each
            for each in path.rglob("*.parquet")
            # So do Spark and Hive name what is not data.
            if each.is_file() and not any(p.startswith((".", "_")) for p in each.relative_to(path).parts)
        )
        if not found:
            raise InvalidArgumentError(f"{path}: there are no .parquet files in this folder.", reason="NO_INPUT")
        return found
    if not path.exists():
        raise InvalidArgumentError(f"{path}: this file or folder does not exist.", reason="NO_INPUT")
    return [path]


def plan(path: Path, columns: Columns, recipe_digest: str) -> list[Part]:
    """Divides files into parts, after a look at the schema of each.

    Raises:
        InvalidArgumentError: a file is not Parquet, or lacks a column; names it.
    """
    parts: list[Part] = []
    for file in input_files(path):
        with _opened(file) as parquet:
            layout_of(parquet.schema_arrow, columns, str(file))
            state = file.stat()
            sizes = [parquet.metadata.row_group(at) for at in range(parquet.metadata.num_row_groups)]
            first = 0
            for groups in _grouped([(each.num_rows, each.total_byte_size) for each in sizes]):
                rows = sum(sizes[at].num_rows for at in groups)
                described = [FORMAT, recipe_digest, asdict(columns), _name(path, file)]
                key = content_digest([*described, state.st_size, state.st_mtime_ns, list(groups)])
                parts.append(Part(len(parts), str(file), tuple(groups), first, rows, key))
                first += rows
    return parts


def _grouped(groups: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Numbers of row groups, given by rows and bytes, in runs that are large enough for a part."""
    run: list[int] = []
    rows = size = 0
    for number, (own_rows, own_size) in enumerate(groups):
        run.append(number)
        rows, size = rows + own_rows, size + own_size
        if rows >= _PART_ROWS or size >= _PART_BYTES:
            yield run
            run, rows, size = [], 0, 0
    if run:
        yield run


def _name(path: Path, file: Path) -> str:
    return file.name if file == path else file.relative_to(path).as_posix()


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _damaged(file, error) from error
    except FileNotFoundError as error:
        raise InvalidArgumentError(
            f"{file}: this file does not exist here. All machines of a cluster need the input at the same path.",
            reason="NO_INPUT",
            metadata={"file": str(file)},
        ) from error
    except PermissionError as error:
        raise InvalidArgumentError(f"{file}: cannot be read: {error.strerror}.", reason="NO_INPUT") from error


def _damaged(file: Path, error: Exception, where: str = "") -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{file}: {where}cannot be read as Parquet: {str(error).splitlines()[0]}. It may be cut off or damaged; copy "
        "it again, or leave it out.",
        reason="INVALID_PARQUET",
        metadata={"file": str(file)},
    )


@dataclass(frozen=True, slots=True)
class PartCleaner:
    """Cleans one part after another, in whichever process; all that it needs is in files."""

    root: str
    """The input: names in ids and errors are relative to it."""
    partial: str
    columns: Columns

    def clean(self, part: Part, recipe: CompiledRecipe) -> PartReport:
        """Cleans a part and writes its files, its report last.

        Raises:
            InvalidArgumentError: the file cannot be read; names it and the row group.
            OSError: the disk is full, or cannot be written.
        """
        file, folder = Path(part.file), Path(self.partial)
        names: set[str] = set()
        reasons: Counter[str] = Counter()
        operators: Counter[str] = Counter()
        records = kept = 0
        with (
            _opened(file) as parquet,
            _written(folder / _KEPT / _file(part.number), _kept_schema()) as keep,
            _written(folder / _REJECTED / _file(part.number), _rejected_schema()) as reject,
        ):
            for rows in self._batches(parquet, part):
                verdicts = _judged(rows, recipe)
                keep(_kept_batch([(row, c) for row, c in zip(rows, verdicts, strict=True) if c.rejection is None]))
                gone = [(row, c.rejection) for row, c in zip(rows, verdicts, strict=True) if c.rejection is not None]
                reject(_rejected_batch([(row.record_id, row.source, rejection) for row, rejection in gone]))
                for row, cleaned in zip(rows, verdicts, strict=True):
                    names.update(row.attributes, cleaned.attributes)
                reasons.update(rejection.reason for _, rejection in gone)
                operators.update(rejection.operator for _, rejection in gone if rejection.operator)
                records += len(rows)
                kept += len(rows) - len(gone)
        report = PartReport(part.number, records, kept, dict(reasons), dict(operators), sorted(names))
        replace_text(folder / _REPORTS / f"{part.number:05d}.json", json.dumps({"key": part.key, **asdict(report)}))
        return report

    def _batches(self, parquet: Any, part: Part) -> Iterator[list[Row]]:
        import pyarrow as pa

        file = Path(part.file)
        name, row = _name(Path(self.root), file), part.first_row
        layout = layout_of(parquet.schema_arrow, self.columns, part.file)
        try:
            batches = parquet.iter_batches(
                BATCH_ROWS, row_groups=list(part.groups), columns=layout.names, use_threads=False
            )
            for batch in batches:
                yield list(rows_of(batch, layout, self.columns, name, row))
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, error, f"row {row} or one after it (row groups {list(part.groups)}) ") from error


def _judged(rows: Sequence[Row], recipe: CompiledRecipe) -> list[Cleaned]:
    """A verdict for each row; those that are not a record never reach the recipe."""
    cleaned = iter(recipe.clean_batch((row.text, row.attributes) for row in rows if row.wrong is None))
    return [next(cleaned) if row.wrong is None else Cleaned("", {}, row.wrong) for row in rows]


class BulkFolder:
    """Implements `services.cleaning.app.bulk.PartFiles`; of one run at a time."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self.partial = output.with_name(f".{output.name}.partial")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Creates the folder of unfinished work and keeps other runs out of it.

        Raises:
            AlreadyExistsError: the output is not empty.
            AbortedError: another run writes it.
            InvalidArgumentError: it cannot be written.
        """
        self._refuse_existing()
        try:
            for name in (_KEPT, _REJECTED, _REPORTS):
                (self.partial / name).mkdir(parents=True, exist_ok=True)
            handle = os.open(self.partial / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise InvalidArgumentError(f"{self._output} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise AbortedError(
                f"Another run is writing {self._output}; wait for it, or name another folder.", reason="BULK_RUNNING"
            ) from error
        try:
            yield
        finally:
            os.close(handle)

    def finished(self, part: Part) -> PartReport | None:
        """See the port."""
        try:
            value = json.loads((self.partial / _REPORTS / f"{part.number:05d}.json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        if value.pop("key") != part.key:
            return None
        return PartReport(**value)

    def kept(self, part: Part) -> Iterator[SetRecord]:
        """See the port."""
        with self._table(self.partial / _KEPT / _file(part.number)) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS):
                columns = [batch.column(name).to_pylist() for name in ("record_id", "text", ATTRIBUTES, "source")]
                for record_id, text, attributes, source in zip(*columns, strict=True):
                    yield SetRecord(record_id, text, dict(attributes), source)

    def publish(
        self, parts: Sequence[Part], dropped: Mapping[str, Rejection], manifest: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """See the port. The folder gets its name last."""
        made = self.partial / _OUTPUT
        shutil.rmtree(made, ignore_errors=True)
        for name in (_KEPT, _REJECTED):
            (made / name).mkdir(parents=True)
        for part in parts:
            self._place(part, dropped, made)
        files = {
            each.relative_to(made).as_posix(): {"bytes": each.stat().st_size, "sha256": _sha256(each)}
            for each in sorted(made.rglob("*.parquet"))
        }
        whole = {**manifest, "files": files}
        replace_text(made / MANIFEST, json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        self._refuse_existing()
        with contextlib.suppress(FileNotFoundError):
            self._output.rmdir()
        made.rename(self._output)
        shutil.rmtree(self.partial, ignore_errors=True)
        return whole

    def _place(self, part: Part, dropped: Mapping[str, Rejection], made: Path) -> None:
        file = _file(part.number)
        own = self.partial / _KEPT / file, self.partial / _REJECTED / file
        gone = {record.name: record for record in self.kept(part) if record.name in dropped} if dropped else {}
        if not gone:
            for path in own:
                _link(path, made / path.parent.name / file)
            return
        with self._table(own[0]) as parquet, _written(made / _KEPT / file, _kept_schema()) as keep:
            for batch in parquet.iter_batches(BATCH_ROWS):
                keep(batch.filter(_stay(batch, gone)))
        with self._table(own[1]) as parquet, _written(made / _REJECTED / file, _rejected_schema()) as reject:
            for batch in parquet.iter_batches(BATCH_ROWS):
                reject(batch)
            reject(_rejected_batch([(r.record_id, r.source, dropped[name]) for name, r in gone.items()]))

    @contextmanager
    def _table(self, path: Path) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as parquet:
                yield parquet
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise DataLossError(
                f"{path} is missing or damaged: {error}. Delete {self.partial} and run the command again.",
                reason="PARTIAL_DAMAGED",
                metadata={"file": str(path)},
            ) from error

    def _refuse_existing(self) -> None:
        if self._output.is_dir() and not any(self._output.iterdir()):
            return
        if self._output.exists():
            raise AlreadyExistsError(
                f"{self._output} exists and is not empty; name another folder, or delete it.",
                reason="OUTPUT_EXISTS",
                metadata={"path": str(self._output)},
            )


def _file(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _stay(batch: pa.RecordBatch, gone: Mapping[str, SetRecord]) -> pa.Array[Any]:
    import pyarrow as pa

    ids: list[Any] = batch.column("record_id").to_pylist()
    sources: list[Any] = batch.column("source").to_pylist()
    names = (SetRecord(record_id, "", {}, source).name for record_id, source in zip(ids, sources, strict=True))
    return pa.array([name not in gone for name in names], pa.bool_())


def _kept_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("record_id", "source", "text")]
    return pa.schema([*texts, (ATTRIBUTES, pa.map_(pa.string(), pa.string()))])


def _rejected_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("record_id", "source", "reason", "detail", "operator")])


def _kept_batch(rows: Sequence[tuple[Row, Cleaned]]) -> pa.RecordBatch:
    import pyarrow as pa

    columns: list[list[Any]] = [
        [row.record_id for row, _ in rows],
        [row.source for row, _ in rows],
        [cleaned.text for _, cleaned in rows],
        [list(cleaned.attributes.items()) for _, cleaned in rows],
    ]
    schema = _kept_schema()
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _rejected_batch(rows: Sequence[tuple[str, str, Rejection]]) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [
        [record_id for record_id, _, _ in rows],
        [source for _, source, _ in rows],
        [rejection.reason for _, _, rejection in rows],
        [rejection.detail for _, _, rejection in rows],
        [rejection.operator for _, _, rejection in rows],
    ]
    return pa.record_batch([pa.array(values, pa.string()) for values in columns], schema=_rejected_schema())


@contextmanager
def _written(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Writes a Parquet file that appears whole; gives what adds a batch."""
    import pyarrow.parquet as pq

    # Without the schema of Arrow, and with neither time nor host: equal rows give equal bytes.
    with (
        replacing(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", store_schema=False) as writer,
    ):
        yield lambda batch: writer.write_batch(batch) if batch.num_rows else None


def _link(path: Path, target: Path) -> None:
    """The file under a second name; a copy where the disk has no such links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
