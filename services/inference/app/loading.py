"""Loads versions into the server: nothing is loaded that was not verified just before.

What the repository holds is verified before each load. A copy that does not verify is replaced from the artefact
store, if the build there verifies. Between loads a cheap look at the files (size, times, inode) shows when to verify
again, so that an overwritten file is noticed while its version serves.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from services.inference.app.ports import Builds, ModelServer, ModelStore, Repository
from services.inference.app.route_book import RouteBook
from services.inference.domain.model import Integrity, IntegrityState, ModelVersion
from services.kit.clock import Clock
from services.kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    TidemillError,
    is_retryable,
)

logger = logging.getLogger(__name__)

DAMAGED = "BUILD_DAMAGED"
_INTEGRITY = {
    DAMAGED: IntegrityState.DAMAGED,
    "DIGEST_MISMATCH": IntegrityState.DAMAGED,
    "BUILD_UNSIGNED": IntegrityState.UNTRUSTED,
    "BUILD_UNTRUSTED": IntegrityState.UNTRUSTED,
}


def is_integrity_error(error: TidemillError) -> bool:
    """Whether a build was refused for its content or its signature."""
    return error.reason in _INTEGRITY


def is_lost(error: TidemillError) -> bool:
    """Whether a load failed because a version's files are not available anywhere: refused or deleted."""
    return is_integrity_error(error) or isinstance(error, NotFoundError | PermissionDeniedError | InvalidArgumentError)


@dataclass(frozen=True, slots=True)
class ServingParts:
    """The ports needed to change which version serves."""

    store: ModelStore
    builds: Builds
    repository: Repository
    server: ModelServer
    book: RouteBook
    clock: Clock


class Loader:
    """Loads verified versions into the server. One thread per model at a time; the caller holds its lock."""

    def __init__(self, parts: ServingParts) -> None:
        self._store, self._builds, self._repository = parts.store, parts.builds, parts.repository
        self._server, self._clock = parts.server, parts.clock
        self._stamps: dict[tuple[str, int], object] = {}
        """Stamp of each version's files at its last good verification."""

    def load(self, version: ModelVersion, build: Path | None = None) -> ModelVersion:
        """Loads a version whose files verify; other versions of its model are not touched.

        Args:
            version: the version.
            build: its verified build, where that has been fetched already.

        Returns:
            The version, with the result of the verification and its new generation.

        Raises:
            FailedPreconditionError: neither the repository's copy nor the artefact verifies, or the server refuses it.
            NotFoundError: neither a copy nor the artefact exists.
            UnavailableError: the server or the artefact store does not answer.
        """
        refused = self._check_copy(version)
        if refused is not None:
            try:
                self._place(version, build)
            except TidemillError as error:
                if is_retryable(error) or not is_integrity_error(refused):
                    raise
                # People need to know the first error.
                message = f"{refused.message} The artefact cannot replace it: {error.message}"
                raise FailedPreconditionError(message, reason=refused.reason, metadata=refused.metadata) from error
        version = self._note(version, IntegrityState.VERIFIED)
        self._repository.configure(version)
        self._server.load(version.model, version.number)
        return self._store.count_load(version)

    def looks_unchanged(self, version: ModelVersion) -> bool:
        """Whether the files still look as at the last good verification; reads none of them."""
        known = self._stamps.get((version.model, version.number))
        return known is not None and known == self._repository.stamp(version)

    def is_intact(self, version: ModelVersion) -> bool:
        """Whether the repository's copy is intact; reads the files only if they look changed."""
        if self.looks_unchanged(version):
            return True
        if self._check_copy(version) is not None:
            return False
        self._note(version, IntegrityState.VERIFIED)
        return True

    def refuse(self, version: ModelVersion, error: TidemillError) -> ModelVersion:
        """Keeps why a version was refused; returns it with that."""
        return self._note(version, _INTEGRITY.get(error.reason, version.integrity.state), error.message)

    def _check_copy(self, version: ModelVersion) -> TidemillError | None:
        """Reads the repository's copy; returns the error, if any."""
        self._stamps.pop((version.model, version.number), None)
        if not self._repository.holds(version):
            return NotFoundError(f"The model repository has no files of {version.name}.")
        # Taken before reading, so that a change meanwhile is detected afterwards.
        stamp = self._repository.stamp(version)
        try:
            self._repository.verify(version)
        except TidemillError as error:
            if not is_integrity_error(error):
                raise
            logger.error("%s: %s: %s", version.name, error.reason, error.message)
            self.refuse(version, error)
            return error
        self._stamps[version.model, version.number] = stamp
        return None

    def _place(self, version: ModelVersion, build: Path | None) -> None:
        # The build in the repository may be intact, and only the code next to it of another release.
        folder = build or self._repository.good_build(version)
        if folder is not None:
            self._repository.place(version, folder)
        else:
            fetched = self._builds.fetch(version.lineage.artifact_uri, version.lineage.digest)
            try:
                self._repository.place(version, fetched)
            finally:
                self._builds.release(fetched)
        stamp = self._repository.stamp(version)
        # The server reads the copy, not the artefact.
        self._repository.verify(version)
        self._stamps[version.model, version.number] = stamp

    def _note(self, version: ModelVersion, state: IntegrityState, message: str = "") -> ModelVersion:
        noted = replace(version, integrity=Integrity(state, self._clock.now(), message))
        self._store.update_version(noted)
        return noted
