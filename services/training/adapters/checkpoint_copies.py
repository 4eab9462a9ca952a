"""Copies of a run's newest checkpoint in the artefact store, from which another machine continues the run.

Only where the run's results go to a remote store: a run that works in the store has its checkpoints there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path

from services.kit.errors import TidemillError
from services.kit.ids import new_id
from services.kit.storage.artifacts import ArtifactStore, file_digest, filesystem_of, translate_store_errors

logger = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_STEP = "step-"


class CheckpointCopies:
    """The copies of one run; each is complete or has no manifest, and the newest complete one stays."""

    def __init__(self, folder: Path, uri: str) -> None:
        """Args:
        folder: the checkpoints on this machine, `step-N` each.
        uri: where their copies go.
        """
        self._folder, self._uri = folder, uri
        # Beside the checkpoints: the links stay until they are copied, whatever becomes of the checkpoint itself.
        self._waiting = folder.with_name(f"{folder.name}-to-copy")
        self._changed = threading.Condition()
        self._next: Path | None = None
        self._copying = False

    def copy(self, checkpoint: Path) -> None:
        """Copies a checkpoint while the training continues; one that still waits is left out.

        What fails is logged: the next checkpoint is another chance, and the training needs the copy only if this
        machine is lost.
        """
        linked = self._waiting / f"{checkpoint.name}-{new_id()}"
        linked.mkdir(parents=True)
        for file in checkpoint.iterdir():
            os.link(file, linked / file.name)
        with self._changed:
            left_out, self._next = self._next, linked
            if not self._copying:
                self._copying = True
                threading.Thread(target=self._work, name="checkpoint-copies", daemon=True).start()
        if left_out is not None:
            shutil.rmtree(left_out, ignore_errors=True)

    def finish(self, patience_s: float) -> bool:
        """Waits until all is copied; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._copying, patience_s)

    def fetch(self) -> bool:
        """Fetches the newest copy if it is newer than what is on this machine; whether it did.

        A copy that is damaged is logged and left where it is: what is on this machine, or the beginning, serves.

        Raises:
            UnavailableError: the store does not respond.
        """
        steps = self._complete()
        shutil.rmtree(self._waiting, ignore_errors=True)
        here = [_number(path.name) for path in self._folder.glob(f"{_STEP}*")] if self._folder.is_dir() else []
        if not steps or steps[-1] <= max(here, default=-1):
            return False
        name = f"{_STEP}{steps[-1]:08d}"
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".partial-{new_id()}"
        filesystem, path = filesystem_of(f"{self._uri}/{name}")
        try:
            with translate_store_errors(self._uri):
                filesystem.get(path, str(partial), recursive=True)
            wanted = json.loads((partial / _MANIFEST).read_text(encoding="utf-8"))
            found = {file.name: file_digest(file) for file in partial.iterdir() if file.name != _MANIFEST}
            if found != wanted:
                logger.error("the copy %s/%s of a checkpoint is damaged; it is not used", self._uri, name)
                return False
            (partial / _MANIFEST).unlink()
            partial.rename(self._folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def discard(self) -> None:
        """Removes all copies.

        Raises:
            UnavailableError: the store does not respond.
        """
        ArtifactStore(self._uri).discard_folder(self._uri)

    def _work(self) -> None:
        while True:
            with self._changed:
                folder, self._next = self._next, None
                if folder is None:
                    self._copying = False
                    self._changed.notify_all()
                    return
            try:
                self._copy(folder)
            except (TidemillError, OSError) as error:
                logger.warning("a checkpoint was not copied to %s; the next one will be: %s", self._uri, error)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _copy(self, folder: Path) -> None:
        name = folder.name.rpartition("-")[0]
        filesystem, path = filesystem_of(f"{self._uri}/{name}")
        files = sorted(folder.iterdir())
        with translate_store_errors(self._uri):
            for file in files:
                filesystem.put_file(str(file), f"{path}/{file.name}")
            manifest = json.dumps({file.name: file_digest(file) for file in files})
            filesystem.pipe_file(f"{path}/{_MANIFEST}", manifest.encode())
        for step in self._all():
            if step != _number(name):
                ArtifactStore(self._uri).discard_folder(f"{self._uri}/{_STEP}{step:08d}")

    def _complete(self) -> list[int]:
        return sorted(step for step, files in self._files().items() if _MANIFEST in files)

    def _all(self) -> list[int]:
        return sorted(self._files())

    def _files(self) -> dict[int, set[str]]:
        """The names of the files of each step in the store."""
        filesystem, path = filesystem_of(self._uri)
        found: dict[int, set[str]] = {}
        with translate_store_errors(self._uri):
            for each in filesystem.find(path):
                folder, _, name = each.rpartition("/")
                folder = folder.rpartition("/")[2]
                if folder.startswith(_STEP):
                    found.setdefault(_number(folder), set()).add(name)
        return found


def _number(name: str) -> int:
    return int(name.removeprefix(_STEP))
