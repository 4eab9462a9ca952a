"""Builds from the artefact store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from services.inference.adapters.tasks import TASKS
from services.inference.domain.model import Build
from services.kit.engine import RUNTIME
from services.kit.errors import InvalidArgumentError
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.signing import MANIFEST, TrustedKeys
from services.serving.domain.answer import Task

# Formats that are read by unpickling.
_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})


class ArtifactBuilds:
    """Implements `services.inference.app.ports.Builds` with fsspec URLs; remote folders are copied to `cache`."""

    def __init__(self, artifacts: ArtifactStore, trusted: TrustedKeys, cache: Path) -> None:
        self._artifacts = artifacts
        self._trusted = trusted
        self._cache = cache

    def fetch(self, uri: str, digest: str) -> Path:
        """See the port."""
        self._artifacts.check_contains(uri)
        self._cache.mkdir(parents=True, exist_ok=True)
        folder = self._artifacts.fetch_folder(uri, self._cache)
        try:
            self._trusted.verify_build(folder, digest)
        except BaseException:
            self.release(folder)
            raise
        return folder

    def release(self, folder: Path) -> None:
        """See the port. What is published lies in the model repository; a second copy would never be used again."""
        if folder.parent == self._cache:
            shutil.rmtree(folder, ignore_errors=True)

    def clear_cache(self) -> None:
        """Removes leftovers of a killed process; call it once, at start."""
        shutil.rmtree(self._cache, ignore_errors=True)

    def read(self, folder: Path) -> Build:
        """See the port."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            task = Task(manifest["task"])
            labels = tuple(str(label) for label in manifest.get("labels") or ())
            build = Build(
                task=task,
                precision=str(manifest["precision"]),
                base_model=str(manifest.get("base_model") or ""),
                labels=labels,
                prompt_template=str(manifest.get("prompt_template") or ""),
                embedding_size=int(manifest.get("embedding_size") or 0),
                size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            )
        except FileNotFoundError as error:
            raise _unusable(f"The build has no {MANIFEST}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise _unusable(f"The build's {MANIFEST} is not usable: {error!r}") from error
        support = TASKS[task]
        if manifest.get("runtime") != RUNTIME:
            raise _unusable(
                f"The build was made for {manifest.get('runtime')!r}, and models are served by {RUNTIME}: train the "
                "model again, and publish that."
            )
        if len(labels) < support.min_labels:
            raise _unusable(
                f"A {task.value} build must have at least {support.min_labels} labels; this one has {len(labels)}."
            )
        if support.embeds and build.embedding_size < 1:
            raise _unusable(
                f"A {task.value} build must name its embedding_size, 1 or more; this one has {build.embedding_size}."
            )
        missing = [name for name in support.files if not (folder / name).is_file()]
        # The weights of the build's own graphs, which OpenVINO reads as plain numbers.
        known = {*support.files, *support.optional_files}
        pickles = sorted(
            name
            for path in folder.rglob("*")
            if path.suffix.lower() in _PICKLED and (name := path.relative_to(folder).as_posix()) not in known
        )
        if pickles:
            raise _unusable(
                f"The build holds {', '.join(pickles)}: such files can run code when they are read. A build holds "
                "OpenVINO's files and JSON."
            )
        if missing:
            raise _unusable(f"The build lacks {', '.join(missing)}.")
        return build


def _unusable(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="UNUSABLE_BUILD")
