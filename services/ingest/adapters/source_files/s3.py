"""Files of an S3 bucket, by s3fs. The operator sets endpoint and credentials, never the caller."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from services.ingest.adapters.source_files.interruptible import InterruptibleLoop
from services.ingest.adapters.source_files.port import (
    CHUNK_BYTES,
    FoundFile,
    ReadLimits,
    forbidden,
    matching,
    no_folder,
    not_a_file,
    not_a_folder,
    wrong,
)
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.domain.source_import import SourceSpec
from services.ingest.domain.source_uri import SourceUri
from services.ingest.engine.file_format import BadContentError
from services.kit.network_wall import NetworkWall

T = TypeVar("T")

_GLOB = "*?["
# Listings come in pages of a thousand.
_LISTING_S = 300.0


def s3_endpoint(setting: str) -> str:
    """The operator's endpoint: this service's setting, else the usual variable of S3 clients; empty means Amazon."""
    return setting or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def endpoint_address(endpoint: str) -> tuple[str, int] | None:
    """Host and port of an endpoint."""
    parts = urlsplit(endpoint)
    if not parts.hostname:
        return None
    return parts.hostname.lower(), parts.port or (443 if parts.scheme == "https" else 80)


class S3Files:
    """Implements `port.FolderPlace` for a bucket."""

    def __init__(
        self,
        spec: SourceSpec,
        uri: SourceUri,
        roots: SourceRoots,
        wall: NetworkWall,
        endpoint: str,
        limits: ReadLimits,
        interrupt: Interrupt,
    ) -> None:
        self._spec = spec
        self._root = f"{uri.host}/{uri.path}".rstrip("/")
        self._roots = roots
        self._wall = wall
        self._endpoint = endpoint
        self._limits = limits
        self._waiting = InterruptibleLoop(interrupt)
        self._files: Any = None
        self._etags: dict[str, str] = {}

    def find(self, pattern: str) -> Mapping[str, FoundFile]:
        """See the port."""
        self._check(self._root)
        kind = self._kind(self._root)
        if kind == "file":
            raise not_a_folder(self._spec)
        if not kind:
            raise no_folder(self._spec)
        listing = self._run(self._call("_find", self._root, detail=True), _LISTING_S)
        return self._found(matching(self._spec, listing, pattern, self.below))

    def match(self) -> Mapping[str, FoundFile]:
        """See the port."""
        uri = self._spec.kind.uri
        is_glob = any(character in self._root for character in _GLOB)
        self._check(self._root)
        kind = self._kind(self._root)
        if is_glob and not kind:
            listing = self._run(self._call("_glob", self._root, detail=True), _LISTING_S)
            files = {path: info for path, info in listing.items() if info.get("type") == "file"}
            if not files:
                raise wrong(self._spec, f"No file matches {uri}; add one or correct the glob.")
            return self._found(files)
        if not kind:
            raise wrong(self._spec, f"{uri} does not exist; give a file or a glob such as s3://bucket/*.jsonl.")
        if kind == "directory":
            raise not_a_file(self._spec)
        return self._found({self._root: self._run(self._call("_info", self._root))})

    def below(self, path: str) -> str:
        """See the port."""
        prefix = self._root + "/"
        return path[len(prefix) :] if path.startswith(prefix) else PurePosixPath(path).name

    def location(self, path: str) -> str:
        """See the port."""
        return f"s3://{path}"

    @contextmanager
    def open(self, path: str) -> Iterator[Iterator[bytes]]:
        """See the port."""
        self._check(path)
        body = self._run(self._body(path))
        try:
            yield self._chunks(body)
        finally:
            body.close()

    def _chunks(self, body: Any) -> Iterator[bytes]:
        while chunk := self._run(body.read(CHUNK_BYTES)):
            yield chunk

    def heads(self, paths: Sequence[str], size: int) -> Sequence[bytes | OSError]:
        """See the port; reads in parallel."""
        for path in paths:
            self._check(path)

        async def all_of_them() -> list[bytes | BaseException]:
            return await asyncio.gather(*(self._head(path, size) for path in paths), return_exceptions=True)

        found: list[bytes | OSError] = []
        for item in self._run(all_of_them()):
            if isinstance(item, BaseException) and not isinstance(item, OSError):
                raise item
            found.append(item)
        return found

    async def _head(self, path: str, size: int) -> bytes:
        body = await self._body(path)
        try:
            return bytes(await body.read(size))
        finally:
            body.close()

    async def _body(self, path: str) -> Any:
        bucket, _, key = path.partition("/")
        answer = await self._call("_call_s3", "get_object", Bucket=bucket, Key=key)
        expected = self._etags.get(path, "")
        if expected and answer.get("ETag", "") != expected:
            raise BadContentError("SOURCE_CHANGED", "the file changed while it was imported; import it again")
        return answer["Body"]

    def close(self) -> None:
        """See the port."""
        client = getattr(self._files, "_s3", None)
        if client is not None:
            self._waiting.finish(client.__aexit__(None, None, None))
        self._waiting.close()

    def _check(self, path: str) -> None:
        if not self._roots.allows_s3(path):
            raise forbidden(
                self._spec,
                f"s3://{path} is not below any of the buckets that imports may read with this service's credentials. "
                "Run `tidemill run --allow s3://…`, or ask the operator to add it to TIDEMILL_SOURCE_ROOTS.",
            )

    def _kind(self, path: str) -> str:
        async def look() -> str:
            try:
                return str((await self._call("_info", path))["type"])
            except FileNotFoundError:
                return ""

        return self._run(look())

    def _found(self, listing: Mapping[str, Mapping[str, Any]]) -> Mapping[str, FoundFile]:
        if len(listing) > self._limits.files:
            message = f"{self._spec.kind.uri} has more than {self._limits.files} files; import it in parts."
            raise wrong(self._spec, message, "SOURCE_TOO_LARGE")
        self._etags = {path: str(info.get("ETag") or "") for path, info in listing.items()}
        return {path: FoundFile(int(info.get("size") or 0), self._etags[path]) for path, info in listing.items()}

    def _run(self, coroutine: Coroutine[Any, Any, T], limit_s: float = 0) -> T:
        limit_s = limit_s or self._limits.connect_s + self._limits.silence_s
        try:
            return self._waiting.run(coroutine, limit_s, f"s3://{self._root}")
        except InterruptedReadError:
            raise
        except Exception as error:
            # The client may report a refused connection with errors of its own.
            if self._wall.refused:
                raise forbidden(
                    self._spec,
                    "The S3 endpoint leads to an address that sources may not be read from. The operator must "
                    "set TIDEMILL_SOURCE_S3_ENDPOINT or TIDEMILL_SOURCE_HOSTS.",
                ) from error
            raise

    async def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        if self._files is None:
            self._files = self._connected()
        await self._files.set_session()
        return await getattr(self._files, name)(*arguments, **named)

    def _connected(self) -> Any:
        try:
            import s3fs
        except ImportError as error:
            raise wrong(
                self._spec, f"{self._spec.kind.uri}: install tidemill[s3] to read s3://.", "UNKNOWN_PROTOCOL"
            ) from error
        return s3fs.S3FileSystem(
            asynchronous=True,
            loop=asyncio.get_running_loop(),
            skip_instance_cache=True,
            use_listings_cache=False,
            endpoint_url=self._endpoint or None,
            config_kwargs={
                "connect_timeout": self._limits.connect_s,
                "read_timeout": self._limits.silence_s,
                "retries": {"mode": "standard", "max_attempts": 2},
                # Without the proxy in this process's environment.
                "proxies": {},
                "connector_args": {
                    "resolver": self._wall.resolver(),
                    "socket_factory": self._wall.socket,
                    "use_dns_cache": False,
                },
            },
        )
