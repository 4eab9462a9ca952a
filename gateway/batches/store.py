"""Where files and batches live: a folder of the mesh's state, one below it for each tenant. Its calls block.

All gateway processes of a machine share it. A batch is worked on by the process that holds the kernel's lock on its
lock file; the lock of a process that dies is released, and another one continues.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.batches.objects import ENDED, KEEP_S, WINDOW_S, Batch, FileObject, StoredBatch
from services.kit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.kit.ids import ID_PATTERN, new_id
from services.kit.storage.disk import DiskGuard
from services.kit.whole_files import replace_text, replacing

logger = logging.getLogger(__name__)

_FILE, _BATCH = re.compile(f"file-{ID_PATTERN}"), re.compile(f"batch_{ID_PATTERN}")
_MAX_FILES, _MAX_OPEN = 1000, 32
# A batch ends, or a file is deleted, within seconds at the earliest.
_RETRY_S = 10.0

M = TypeVar("M", bound=BaseModel)
Order = Literal["asc", "desc"]


class Claim:
    """The right to work on a batch; `close` gives it back."""

    def __init__(self, folder: Path, tenant: str, batch_id: str, lock: int) -> None:
        self._folder, self._lock = folder, lock
        self.tenant, self.batch_id = tenant, batch_id

    def path(self, what: str) -> Path:
        """A file of the batch: `in`, `out`, `err` or `cancel`."""
        return self._folder / f"{self.batch_id}.{what}"

    @property
    def cancelled(self) -> bool:
        """Whether its caller wants no more of it."""
        return self.path("cancel").exists()

    def load(self) -> StoredBatch:
        """The batch as it was saved last."""
        return StoredBatch.model_validate_json(self.path("json").read_bytes())

    def save(self, stored: StoredBatch) -> None:
        """Keeps its state."""
        _write(self.path("json"), stored)

    def forget(self) -> None:
        """Deletes what only the work needed."""
        for what in ("in", "out", "err", "cancel", "lock"):
            self.path(what).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets others work on it."""
        os.close(self._lock)


class BatchStore:
    """Files and batches of all tenants."""

    def __init__(self, folder: Path, tenant_bytes: int, clock: Callable[[], float]) -> None:
        """Args:
        folder: is made if need be.
        tenant_bytes: limit of all files of a tenant.
        clock: seconds since 1970.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._limit, self._clock = folder, tenant_bytes, clock
        self._disk = DiskGuard(folder)

    def put_file(self, tenant: str, name: str, source: BinaryIO, size: int, keep_s: int) -> FileObject:
        """Keeps a file.

        Raises:
            ResourceExhaustedError: the tenant has too many, or the disk is full.
        """
        self._disk.check()
        files = self._files(tenant)
        if self.used(tenant) + size > self._limit or len(list(files.glob("*.json"))) >= _MAX_FILES:
            raise ResourceExhaustedError(
                f"The limit of {self._limit:,} bytes or {_MAX_FILES} files of batches is reached; delete some.",
                reason="FILES_FULL",
                metadata={"limit": str(self._limit)},
                retry_after_s=_RETRY_S,
            )
        file_id, now = f"file-{new_id()}", int(self._clock())
        path = files / file_id
        with replacing(path) as target:
            shutil.copyfileobj(source, target)
        return self._register(
            tenant,
            FileObject(id=file_id, bytes=size, created_at=now, expires_at=now + keep_s, filename=name, purpose="batch"),
        )

    def _register(self, tenant: str, found: FileObject) -> FileObject:
        _write(self._files(tenant) / f"{found.id}.json", found)
        return found

    def get_file(self, tenant: str, file_id: str) -> FileObject:
        """A file.

        Raises:
            NotFoundError: the tenant has none of this id, or it has expired.
        """
        found = _read(self._files(tenant) / f"{file_id}.json", FileObject) if _FILE.fullmatch(file_id) else None
        if found is None or found.expires_at <= self._clock():
            raise NotFoundError(f"The file {file_id[:64]} does not exist, or has expired.", reason="FILE_NOT_FOUND")
        return found

    def content_of(self, tenant: str, file_id: str) -> Path:
        """Where the content of a file lies; errors as `get_file`."""
        return self._files(tenant) / self.get_file(tenant, file_id).id

    def list_files(
        self, tenant: str, order: Order, after: str, limit: int, purpose: str
    ) -> tuple[Sequence[FileObject], bool]:
        """Files by age, and whether there are more; `purpose` may be empty."""
        now = self._clock()
        found = [
            item
            for path in self._files(tenant).glob("*.json")
            if (item := _read(path, FileObject)) is not None and item.expires_at > now and purpose in ("", item.purpose)
        ]
        return _page({item.id: item for item in found}, order, after, limit)

    def delete_file(self, tenant: str, file_id: str) -> None:
        """Deletes a file; a batch that reads it has a copy. Errors as `get_file`."""
        path = self.content_of(tenant, file_id)
        path.with_name(f"{file_id}.json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def create_batch(
        self, tenant: str, key_id: str, file_id: str, endpoint: str, metadata: dict[str, str] | None, output_s: int
    ) -> Batch:
        """Makes a batch of a file.

        Raises:
            NotFoundError: the file does not exist.
            FailedPreconditionError: the file was not uploaded for a batch.
            ResourceExhaustedError: too many batches of the tenant have not ended, or its files are full.
        """
        self._disk.check()
        source = self.get_file(tenant, file_id)
        if source.purpose != "batch":
            raise FailedPreconditionError(
                f"The file {file_id} has the purpose {source.purpose}; upload one with `batch`.", reason="WRONG_PURPOSE"
            )
        if len(list(self._batches(tenant).glob("*.in"))) >= _MAX_OPEN:
            raise ResourceExhaustedError(
                f"{_MAX_OPEN} batches have not ended; wait for one of them, or cancel it.",
                reason="TOO_MANY_BATCHES",
                retry_after_s=_RETRY_S,
            )
        batch_id, now = f"batch_{new_id()}", int(self._clock())
        batch = Batch(
            id=batch_id,
            endpoint=endpoint,
            input_file_id=file_id,
            completion_window="24h",
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=metadata,
        )
        folder = self._batches(tenant)
        _write(folder / f"{batch_id}.json", StoredBatch(batch=batch, key_id=key_id, output_s=output_s))
        # With its input it is seen by those who work.
        os.link(self.content_of(tenant, file_id), folder / f"{batch_id}.in")
        return batch

    def get_batch(self, tenant: str, batch_id: str) -> Batch:
        """A batch.

        Raises:
            NotFoundError: the tenant has none of this id.
        """
        found = self._read_batch(self._batches(tenant) / f"{batch_id}.json") if _BATCH.fullmatch(batch_id) else None
        if found is None:
            raise NotFoundError(f"The batch {batch_id[:64]} does not exist.", reason="BATCH_NOT_FOUND")
        return found

    def list_batches(self, tenant: str, after: str, limit: int) -> tuple[Sequence[Batch], bool]:
        """Batches, newest first, and whether there are more."""
        return _page({batch.id: batch for batch in self._all(tenant)}, "desc", after, limit)

    def cancel_batch(self, tenant: str, batch_id: str) -> Batch:
        """Ends a batch; what is answered already stays.

        Raises:
            NotFoundError: the tenant has none of this id.
            AlreadyExistsError: it has ended otherwise.
        """
        batch = self.get_batch(tenant, batch_id)
        if batch.status == "cancelled":
            return batch
        if batch.status in ENDED:
            raise AlreadyExistsError(f"The batch {batch_id} has ended: {batch.status}.", reason="BATCH_ENDED")
        (self._batches(tenant) / f"{batch_id}.cancel").touch(mode=0o600)
        return self.get_batch(tenant, batch_id)

    def unfinished(self) -> list[tuple[str, str]]:
        """Tenant and id of all batches that have not ended, oldest first."""
        # Without its input a batch has ended.
        found = [(path.stem, tenant) for tenant in self._tenants() for path in self._batches(tenant).glob("*.in")]
        return [(tenant, batch_id) for batch_id, tenant in sorted(found)]

    def claim(self, tenant: str, batch_id: str) -> Claim | None:
        """The right to work on a batch; None if another has it, or it has ended."""
        folder = self._batches(tenant)
        lock = os.open(folder / f"{batch_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        claim = Claim(folder, tenant, batch_id, lock)
        try:
            ended = claim.load().batch.status in ENDED
        except FileNotFoundError:  # deleted meanwhile
            ended = True
        if ended:
            claim.forget()
            claim.close()
            return None
        return claim

    def place_outputs(self, claim: Claim, stored: StoredBatch) -> None:
        """Makes files of what was written for a batch; a repeat after a kill changes nothing."""
        now, batch = int(self._clock()), stored.batch
        for what, name, file_id in (("out", "output", batch.output_file_id), ("err", "errors", batch.error_file_id)):
            if file_id is None:
                claim.path(what).unlink(missing_ok=True)
                continue
            target = self._files(claim.tenant) / file_id
            if claim.path(what).exists():
                claim.path(what).replace(target)
            found = FileObject(
                id=file_id,
                bytes=target.stat().st_size,
                created_at=now,
                expires_at=now + stored.output_s,
                filename=f"{batch.id}_{name}.jsonl",
                purpose="batch_output",
            )
            self._register(claim.tenant, found)

    def used(self, tenant: str) -> int:
        """Bytes of all files of a tenant; an input that is also a file counts once."""
        found = {
            (stat.st_ino, stat.st_size)
            for folder in (self._files(tenant), self._batches(tenant))
            for entry in os.scandir(folder)
            if (stat := _stat(entry)) is not None
        }
        return sum(size for _, size in found)

    @property
    def limit(self) -> int:
        """Bytes that the files of a tenant may have."""
        return self._limit

    def sweep(self) -> None:
        """Deletes what has expired."""
        now = self._clock()
        for tenant in self._tenants():
            for path in self._files(tenant).glob("*.json"):
                if (file := _read(path, FileObject)) is not None and file.expires_at <= now:
                    path.unlink(missing_ok=True)
                    path.with_suffix("").unlink(missing_ok=True)
            for batch in self._all(tenant):
                if batch.status in ENDED and batch.expires_at + KEEP_S <= now:
                    for path in self._batches(tenant).glob(f"{batch.id}.*"):
                        path.unlink(missing_ok=True)

    def _tenants(self) -> list[str]:
        return [path.name.removeprefix("t-") for path in self._folder.iterdir() if path.name.startswith("t-")]

    def _all(self, tenant: str) -> list[Batch]:
        paths = self._batches(tenant).glob("*.json")
        return [batch for path in paths if (batch := self._read_batch(path)) is not None]

    def _read_batch(self, path: Path) -> Batch | None:
        stored = _read(path, StoredBatch)
        if stored is None or stored.batch.status in ENDED:
            return None if stored is None else stored.batch
        marker = _stat(path.with_suffix(".cancel"))
        if marker is None:
            return stored.batch
        return stored.batch.model_copy(update={"status": "cancelling", "cancelling_at": int(marker.st_mtime)})

    def _files(self, tenant: str) -> Path:
        return self._below(tenant, "files")

    def _batches(self, tenant: str) -> Path:
        return self._below(tenant, "batches")

    def _below(self, tenant: str, what: str) -> Path:
        # With a prefix, for a tenant may be named `..`.
        folder = self._folder / f"t-{tenant}" / what
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


def _write(path: Path, value: BaseModel) -> None:
    replace_text(path, value.model_dump_json())


def _read(path: Path, kind: type[M]) -> M | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.error("%s is damaged, and so left out: %s", path, error)
        return None


def _stat(entry: os.DirEntry[str] | Path) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _page(items: dict[str, M], order: Order, after: str, limit: int) -> tuple[Sequence[M], bool]:
    """Items behind `after`; ids grow with time."""
    ids = sorted(items, reverse=order == "desc")
    if after:
        ids = [each for each in ids if (each < after if order == "desc" else each > after)]
    return [items[each] for each in ids[:limit]], len(ids) > limit
