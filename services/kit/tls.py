"""Certificates of a server: read and checked together, and read again when their files change.

New connections use the newest files that fit together; open connections keep theirs.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from services.kit.errors import FailedPreconditionError
from services.kit.loops import step_forever
from services.kit.threads import in_thread

logger = logging.getLogger(__name__)

RELOAD_S = 2.0
"""How often the files are checked for changes."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a server's certificate files, in PEM."""

    certificate: Path
    """The server's own certificate first, then its chain."""
    key: Path
    client_ca: Path | None = None
    """CAs of clients; a client must present a certificate signed by one of them. None requires no certificate."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The content of the files, checked."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expire_time: datetime

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client's channel; `client_ca` are the authorities that it trusts."""
        return grpc.ssl_channel_credentials(self.client_ca, self.key, self.chain)

    @classmethod
    def read(cls, files: TlsFiles) -> Certificates:
        """Reads the files.

        Raises:
            FailedPreconditionError: one cannot be read, is not PEM, or they do not belong together; names the file.
        """
        chain, key = _content(files.certificate), _content(files.key)
        own = _certificates(chain, files.certificate)[0]
        try:
            private = load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise _broken(files.key, f"is not a private key in PEM without a password: {error}") from error
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*spki) != own.public_key().public_bytes(*spki):
            raise _broken(files.key, f"does not match the certificate in {files.certificate}")
        client_ca = None
        if files.client_ca is not None:
            client_ca = _content(files.client_ca)
            _certificates(client_ca, files.client_ca)
        return cls(chain, key, client_ca, own.not_valid_after_utc)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _broken(path, f"cannot be read: {error.strerror}") from error


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise _broken(path, f"does not contain a certificate in PEM: {error}") from error


def _broken(path: Path, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{path} {why}.", reason="TLS_FILES", metadata={"path": str(path)})


class ClientFiles:
    """A client's files, read again when they change."""

    def __init__(self, files: TlsFiles) -> None:
        """Args:
        files: the client's certificate and key, and as `client_ca` the authorities that it trusts.
        """
        self._files = files
        self._marks = file_marks(files)
        self._looked = time.monotonic()

    def read(self) -> Certificates:
        """Their content now.

        Raises:
            FailedPreconditionError: they cannot be used; names the file.
        """
        return Certificates.read(self._files)

    def changed(self) -> Certificates | None:
        """New content, if the files have changed and fit together; looks at most every `RELOAD_S` seconds."""
        if time.monotonic() - self._looked < RELOAD_S:
            return None
        self._looked = time.monotonic()
        marks = file_marks(self._files)
        if marks == self._marks:
            return None
        try:
            read = self.read()
        except FailedPreconditionError as error:  # for example a new key whose certificate is not there yet
            logger.warning("the new TLS files cannot be used yet, keeping the old ones: %s", error.message)
            return None
        self._marks = marks
        logger.info("new TLS certificate from %s", self._files.certificate)
        return read


class ServerTls:
    """What a server's ports use: an SSL context and gRPC credentials that follow the files."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files.

        Raises:
            FailedPreconditionError: they cannot be used; names the file.
        """
        self._files = files
        self._marks = file_marks(files)
        self._current = Certificates.read(files)
        self._context = _context(self._current, files)
        _warn(self._current, files)

    def context(self) -> ssl.SSLContext:
        """For TLS 1.2 and newer, for servers of asyncio and uvloop; each connection uses the newest files."""
        return _Newest(lambda: self._context)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """The same for a gRPC server."""
        given = self._current

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self._current is given:
                return None
            given = self._current
            return _configuration(given)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(given),
            newest,  # type: ignore[arg-type]  # None stands for "as before", which the stubs do not know
            require_client_authentication=given.client_ca is not None,
        )

    def reload(self) -> bool:
        """Reads the files again if they have changed.

        Returns:
            Whether new ones are in use. Files that do not fit together, for example a certificate whose key is
            missing, leave the old ones in use, with a line in the log.
        """
        marks = file_marks(self._files)
        if marks == self._marks:
            return False
        self._marks = marks
        try:
            read = Certificates.read(self._files)
            context = _context(read, self._files)
        except FailedPreconditionError as error:
            logger.warning("cannot use the new TLS files, keeping the old ones: %s", error.message)
            return False
        self._current, self._context = read, context
        logger.info("new TLS certificate from %s, until %s", self._files.certificate, read.expire_time.isoformat())
        _warn(read, self._files)
        return True

    async def watch(self) -> None:
        """Checks the files regularly, until it is cancelled."""
        await step_forever(in_thread(self.reload), "reloading TLS files", idle_s=RELOAD_S)


class _Newest(ssl.SSLContext):
    """Makes each connection by the context that is the newest then.

    Replacing the context of a connection, as by `sni_callback`, is not enough: TLS sessions belong to the context that
    made it, and continuing one checks no certificate, so clients of authorities that are no longer trusted got in.
    """

    _read: Callable[[], ssl.SSLContext]

    def __new__(cls, read: Callable[[], ssl.SSLContext]) -> Self:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._read = read
        return made

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """What event loops call for each connection."""
        return self._read().wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """The same for a socket without an event loop."""
        return self._read().wrap_socket(*args, **options)


def file_marks(files: TlsFiles) -> tuple[object, ...]:
    """Values that change when one of the files changes."""
    marks: list[object] = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            stat = path.stat() if path is not None else None
        except OSError:
            marks.append("missing")
        else:
            marks.append(stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(marks)


def _warn(read: Certificates, files: TlsFiles) -> None:
    if read.expire_time <= datetime.now(UTC):
        logger.warning("the certificate in %s expired at %s", files.certificate, read.expire_time.isoformat())


def _context(read: Certificates, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # The standard library reads files only; if they have changed since, the next check finds out.
        context.load_cert_chain(files.certificate, files.key)
        if read.client_ca is not None:
            context.load_verify_locations(cadata=read.client_ca.decode("ascii"))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise _broken(files.certificate, f"cannot be used: {error}") from error
    return context


def _configuration(read: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(read.key, read.chain)], read.client_ca)
