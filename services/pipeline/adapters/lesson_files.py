"""Lessons as files of JSON lines in the artefact store, where ingest imports them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from services.kit.errors import UnavailableError
from services.kit.storage.artifacts import ArtifactStore, filesystem_of, local_path, translate_store_errors
from services.kit.whole_files import OWNER_ONLY, replacing
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
                with replacing(own, OWNER_ONLY) as file:
                    _write(file, lines)
            except OSError as error:
                raise UnavailableError(f"{own} cannot be written: {error}.", metadata={"uri": uri}) from error
        return uri

    def _upload(self, uri: str, lines: Iterable[Json]) -> None:
        filesystem, path = filesystem_of(uri)
        with tempfile.TemporaryDirectory(prefix="tidemill-lessons-") as scratch, translate_store_errors(uri):
            answers = Path(scratch) / "answers.jsonl"
            with answers.open("wb") as file:
                _write(file, lines)
            filesystem.put_file(str(answers), path)


def _write(file: IO[bytes], lines: Iterable[Json]) -> None:
    for line in lines:
        file.write(json.dumps(line, ensure_ascii=False, sort_keys=True).encode() + b"\n")
