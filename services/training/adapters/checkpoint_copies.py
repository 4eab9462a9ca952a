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
from services.training.adapters.checkpoints import folder_name, step_of

logger = logging.getLogger(__name__)
_MANIFEST = "manifest.json"


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
        steps = sorted(step for step, files in self._files().items() if _MANIFEST in files)
        shutil.rmtree(self._waiting, ignore_errors=True)
        here = [step_of(path.name) for path in self._folder.glob("step-*")] if self._folder.is_dir() else []
        if not steps or steps[-1] <= max(here, default=-1):
            return False
        name = folder_name(steps[-1])
        self._folder.mkdir(parents=True, exist_ok=True)
        self._waiting.mkdir()
        fetched = ArtifactStore(self._uri).fetch_folder(f"{self._uri}/{name}", self._waiting)
        try:
            manifest = fetched / _MANIFEST
            wanted = json.loads(manifest.read_text(encoding="utf-8"))
            manifest.unlink()
            if _digests(fetched) != wanted:
                logger.error("the copy %s/%s of a checkpoint is damaged; it is not used", self._uri, name)
                return False
            fetched.rename(self._folder / name)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
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
        name, store = folder.name.rpartition("-")[0], ArtifactStore(self._uri)
        (folder / _MANIFEST).write_text(json.dumps(_digests(folder)), encoding="utf-8")
        store.put_folder(folder, f"{self._uri}/{name}")
        for step in self._files():
            if step != step_of(name):
                store.discard_folder(f"{self._uri}/{folder_name(step)}")

    def _files(self) -> dict[int, set[str]]:
        """The names of the files of each step in the store."""
        filesystem, path = filesystem_of(self._uri)
        found: dict[int, set[str]] = {}
        with translate_store_errors(self._uri):
            for each in filesystem.find(path):
                folder, _, name = each.rpartition("/")
                folder = folder.rpartition("/")[2]
                found.setdefault(step_of(folder), set()).add(name)
        return found


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in folder.iterdir()}
