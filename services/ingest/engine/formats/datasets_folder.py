"""Folders of Hugging Face's `datasets`, written by `save_to_disk` or as on the hub; no I/O but a temporary file."""

from __future__ import annotations

from dataclasses import dataclass

from services.ingest.domain.record import RawRecord
from services.ingest.engine.arrow_rows import Row, RowFormat
from services.ingest.engine.file_format import FolderFormat, ReadFile


@dataclass(frozen=True)
class DatasetsFolder(FolderFormat[Row], RowFormat):
    """A folder of Arrow or Parquet files; a piece is a row. Numbers of class labels become their names."""

    # Not what `datasets` caches beside them, which has other rows.
    pattern: str = "**/data-*.arrow"
    field = "datasets_folder"
    unit = "row"

    def record(self, source: str, file: ReadFile, piece: Row) -> RawRecord:
        """See `FileFormat`."""
        folder = {self.folder_attribute: file.folder} if self.folder_attribute else {}
        return super().record(source, file, {**piece, **folder, **self.path_groups(file)})


FORMAT = DatasetsFolder
