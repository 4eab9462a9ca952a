"""Parquet files to records, a row each; no I/O but a temporary file."""

from __future__ import annotations

from dataclasses import dataclass

from services.ingest.engine.arrow_rows import RowFormat


@dataclass(frozen=True)
class ParquetFiles(RowFormat):
    """Parquet files; a piece is a row."""

    field = "parquet_files"
    unit = "row"


FORMAT = ParquetFiles
