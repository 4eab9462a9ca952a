"""Lessons as files of JSON lines in the artefact store, where ingest imports them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from services.kit.errors import UnavailableError
from services.kit.storage.artifacts import ArtifactStore, filesystem_of, local_path, translate_store_errors
from services.pipeline.domain.cycle import Json


class StoredLessonFiles:
    """Implements `services.pipeline.app.ports.LessonFiles`: `<root>/feedback/<pipeline>/answers.jsonl`."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def write(self, pipeline: str, lines: Iterable[Json]) -> str:
        """See the port."""
        uri = self._store.uri("feedback", pipeline, "answers.jsonl")
        own = local_path(uri)
        if own is None:
            self._upload(uri, lines)
        else:
            try:
                own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                partial = own.with_name(f".{own.name}.{os.getpid()}")
                _write(partial, lines)
                partial.replace(own)
            except OSError as error:
                raise UnavailableError(f"{own} cannot be written: {error}.", metadata={"uri": uri}) from error
        return uri

    def _upload(self, uri: str, lines: Iterable[Json]) -> None:
        filesystem, path = filesystem_of(uri)
        with tempfile.TemporaryDirectory(prefix="tidemill-lessons-") as scratch, translate_store_errors(uri):
            file = Path(scratch) / "answers.jsonl"
            _write(file, lines)
            filesystem.put_file(str(file), path)


def _write(path: Path, lines: Iterable[Json]) -> None:
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
