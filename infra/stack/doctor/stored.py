"""Checks whether the artefact store can be used, and whether what is in it is intact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from infra.stack.doctor.findings import Check, Finding, Level
from infra.stack.doctor.stores import Stores
from infra.stack.layout import Layout
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, TidemillError
from services.kit.ids import new_id
from services.kit.storage.artifacts import ArtifactStore, filesystem_of, local_path, translate_store_errors
from services.kit.storage.signing import MANIFEST as _BUILD
from services.kit.storage.signing import TrustedKeys

_SNAPSHOT = "manifest.json"
_PROBE = b"tidemill doctor"


def checks(layout: Layout) -> list[Check]:
    """All checks of artefacts."""
    looks = {"artefacts": _artifacts, "snapshots": _snapshots, "builds": _builds}
    return [Check(name, partial(look, layout)) for name, look in looks.items()]


def _artifacts(layout: Layout) -> Iterator[Finding]:
    """Whether the store can be written, read and cleared, which a service finds out in the middle of its work only."""
    root = Stores.of(layout).artifacts.rstrip("/")
    own = local_path(root)
    if own is not None and not own.exists():
        return  # the first service makes it
    uri = f"{root}/.doctor-{new_id()}"
    try:
        filesystem, path = filesystem_of(uri)
        with translate_store_errors(uri):
            filesystem.pipe_file(path, _PROBE)
            found = filesystem.cat_file(path)
            filesystem.rm_file(path)
    except InvalidArgumentError as error:
        yield _unusable(error, "Correct TIDEMILL_ARTIFACTS_URL.")
    except FailedPreconditionError as error:
        yield _unusable(error, "These credentials must be able to read, write, list and delete below it.")
    except FileNotFoundError:
        yield Finding(
            "artefacts",
            Level.FAULT,
            f"The bucket of {root} does not exist.",
            "Create it, or correct TIDEMILL_ARTIFACTS_URL; the mesh creates no bucket.",
            reason="ARTIFACTS_UNAVAILABLE",
        )
    except TidemillError as error:
        yield _unusable(
            error,
            "Start the object store, or correct TIDEMILL_ARTIFACTS_URL and AWS_ENDPOINT_URL. Builds of data sets and "
            "trainings wait for it.",
        )
    else:
        if found != _PROBE:
            yield Finding(
                "artefacts",
                Level.FAULT,
                f"What is written to {root} is read as something else.",
                "It must be a store in which a written object can be read at once.",
            )


def _unusable(error: TidemillError, remedy: str) -> Finding:
    return Finding("artefacts", Level.FAULT, error.message, remedy, reason=error.reason)


def _snapshots(layout: Layout) -> Iterator[Finding]:
    store = ArtifactStore(Stores.of(layout).artifacts)
    for manifest in _found(store, _SNAPSHOT, "datasets"):
        folder = manifest.rpartition("/")[0]
        try:
            content = _content(store, manifest)
            files = {name: str(each["sha256"]) for name, each in content["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield _damaged("snapshots", folder, f"{_SNAPSHOT} cannot be read ({error})")
            continue
        for name, expected in files.items():
            if wrong := _wrong(store, folder, name, expected):
                yield _damaged("snapshots", folder, wrong)


def _builds(layout: Layout) -> Iterator[Finding]:
    store = ArtifactStore(Stores.of(layout).artifacts)
    keys = TrustedKeys(layout.state.model_keys / "trusted")
    for manifest in _found(store, _BUILD):
        folder = manifest.rpartition("/")[0]
        try:
            expected = _content(store, manifest)["digest"]
        except (ValueError, KeyError, TypeError) as error:
            yield _damaged("builds", folder, f"{_BUILD} cannot be read ({error})")
            continue
        # A build of a bucket is copied to be verified: the signature is over files of a folder.
        with tempfile.TemporaryDirectory(prefix="tidemill-doctor-") as scratch:
            here = store.fetch_folder(folder, Path(scratch))
            try:
                keys.verify_build(here, expected)
            except FailedPreconditionError as error:
                yield _finding("builds", error.message.replace(str(here), _shown(folder)))


def _found(store: ArtifactStore, name: str, below: str = "") -> list[str]:
    """URLs of the files of a name, wherever they lie in a folder of the store."""
    filesystem, path = filesystem_of(store.uri(below) if below else store.root)
    with translate_store_errors(store.root), suppress(FileNotFoundError):
        files = sorted(filesystem.find(path))
        return [filesystem.unstrip_protocol(file) for file in files if file.rpartition("/")[2] == name]
    return []


def _content(store: ArtifactStore, uri: str) -> Any:
    return json.loads(store.read_file(uri) or b"")


def _wrong(store: ArtifactStore, folder: str, name: str, expected: str) -> str:
    try:
        state = store.file_state(f"{folder}/{name}")
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    if state is None:
        return f"{name} cannot be read (it is missing)"
    return "" if state[1] == expected else f"{name} is not what was written"


def _damaged(check: str, folder: str, what: str) -> Finding:
    return _finding(check, f"{_shown(folder)} is damaged: {what}.")


def _shown(folder: str) -> str:
    own = local_path(folder)
    return folder if own is None else str(own)


def _finding(check: str, message: str) -> Finding:
    again = "Build the data set again" if check == "snapshots" else "Train it again, or publish another build"
    return Finding(
        check,
        Level.FAULT,
        message,
        f"{again}; move the folder elsewhere first, or restore it from a backup.",
        reason="SNAPSHOT_DAMAGED" if check == "snapshots" else "",
    )
