"""The mesh's own certificate authority, by which its services authenticate each other across machines.

It is created in the state folder at the first start, and signs a certificate for each machine or service. A certificate
is issued as a folder of three files, to be copied to its machine: `certificate.pem` (with the chain to the authority),
`key.pem`, and `authority.pem` (the authorities to trust). Certificates of this machine are renewed here; processes read
changed files again without a restart.

A new authority replaces an old one with an overlap. The old one cross-signs the key of the new one, and each new
certificate carries that signature, so a machine that trusts only the old authority accepts it. `authority.pem` contains
both until the old one is retired or expires.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.stack.errors import StackError
from services.kit.ids import new_id
from services.kit.storage.file_lock import locked
from services.kit.whole_files import OWNER_ONLY, replacing

logger = logging.getLogger(__name__)

LIFE = timedelta(days=90)
"""Of a certificate."""
AUTHORITY_LIFE = timedelta(days=10 * 365)
_CLOCK_SKEW = timedelta(minutes=10)
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")

CERTIFICATE, KEY, AUTHORITY = "certificate.pem", "key.pem", "authority.pem"
LOCAL = "this-machine"
"""Name of the certificate that this machine's services show."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate whose files are on this machine."""

    name: str
    folder: Path
    hosts: tuple[str, ...]
    begin: datetime
    end: datetime

    def due(self, now: datetime) -> bool:
        """Whether it must be renewed: less than a third of its life is left."""
        return now >= self.end - (self.end - self.begin) / 3


class PeerFiles(NamedTuple):
    """Files for mutual TLS."""

    certificate: Path
    key: Path
    authority: Path


class Authority:
    """The authority of one mesh, in a folder that only the mesh's user may enter."""

    def __init__(self, folder: Path, now: datetime | None = None) -> None:
        """Opens the authority; creates it if it is missing.

        Args:
            folder: `State.peer_keys`.
            now: replaces the clock in tests.
        """
        self._folder = folder
        self._now = now
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._path(".lock")):
            if not self._path("current.pem").is_file():
                self._make()

    @property
    def issued(self) -> list[Issued]:
        """Certificates below the authority's folder, sorted by name."""
        return [_issued(file.parent) for file in sorted(self._path("issued").glob(f"*/{CERTIFICATE}"))]

    @property
    def authorities(self) -> list[x509.Certificate]:
        """The trusted authorities; the one that signs comes first."""
        names = ("current.pem", "previous.pem")
        return [_read(self._path(name)) for name in names if self._path(name).is_file()]

    def issue(self, name: str, hosts: Sequence[str], life: timedelta = LIFE) -> Issued:
        """Issues a certificate; replaces an existing one of this name.

        Args:
            name: of a machine or service; letters, digits, dots and hyphens.
            hosts: names and addresses by which others reach it; empty for a client.
            life: how long it is valid, at most as long as the authority.

        Raises:
            StackError: the name or a host is not valid.
        """
        if not _NAME.fullmatch(name):
            raise StackError(
                f"{name!r} is not a valid name of a certificate: use a-z, 0-9, dots and hyphens, at most 63."
            )
        with locked(self._path(".lock")):
            return self._issue(name, hosts, life)

    def renew(self, *, all_of_them: bool = False) -> list[Issued]:
        """Renews what is due on this machine, including the authority; returns the new certificates."""
        with locked(self._path(".lock")):
            now = self._time()
            (current, *_) = self.authorities
            if now >= current.not_valid_after_utc - AUTHORITY_LIFE / 10:
                self._rotate()
            for old in self.authorities[1:]:
                if now >= old.not_valid_after_utc:
                    self._retire()
            due = [each for each in self.issued if all_of_them or each.due(now) or self._is_stale(each)]
            return [self._issue(each.name, each.hosts, each.end - each.begin) for each in due]

    def rotate(self) -> None:
        """Adds a new authority to the old one, and issues new certificates for this machine.

        Raises:
            StackError: an earlier one was not retired yet.
        """
        with locked(self._path(".lock")):
            if len(self.authorities) > 1:
                raise StackError("The previous authority is still trusted: run `tidemill certs retire` first.")
            self._rotate()
        self.renew(all_of_them=True)

    def retire(self) -> None:
        """Ends the trust in the previous authority; certificates that it signed are refused from now on.

        Raises:
            StackError: there is no previous authority.
        """
        with locked(self._path(".lock")):
            if len(self.authorities) < 2:
                raise StackError("There is no previous authority to retire.")
            self._retire()
        self.renew(all_of_them=True)

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # A different name for each, so that two authorities of one mesh are never confused.
        name = _named(f"Tidemill mesh {new_id()[-12:].lower()}")
        certificate = self._sign(_authority(name, name, key.public_key()), AUTHORITY_LIFE, key)
        _write(self._path("current.key"), _pem(key))
        _write(self._path("current.pem"), certificate.public_bytes(Encoding.PEM))

    def _rotate(self) -> None:
        old = _read(self._path("current.pem"))
        old_key = _key(self._path("current.key"))
        _write(self._path("previous.pem"), old.public_bytes(Encoding.PEM))
        self._make()
        new = _read(self._path("current.pem"))
        public = new.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        until = old.not_valid_after_utc - self._time()
        cross = self._sign(_authority(new.subject, old.subject, public), until, old_key)
        _write(self._path("cross.pem"), cross.public_bytes(Encoding.PEM))
        logger.info(
            "the mesh has a new authority; the previous one is trusted until %s", old.not_valid_after_utc.date()
        )

    def _retire(self) -> None:
        for name in ("cross.pem", "previous.pem"):
            self._path(name).unlink(missing_ok=True)

    def _issue(self, name: str, hosts: Sequence[str], life: timedelta) -> Issued:
        authority, authority_key = _read(self._path("current.pem")), _key(self._path("current.key"))
        life = min(life, authority.not_valid_after_utc - self._time())
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(usage, critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False
            )
        chain = self._sign(builder, life, authority_key).public_bytes(Encoding.PEM)
        if self._path("cross.pem").is_file():
            chain += self._path("cross.pem").read_bytes()
        folder = self._path("issued") / name
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        # First the trusted authorities, so that no peer meets a certificate that it does not know yet. A reader of key
        # and certificate between the two lines keeps the previous ones.
        _write(folder / AUTHORITY, b"".join(each.public_bytes(Encoding.PEM) for each in self.authorities))
        _write(folder / KEY, _pem(key))
        _write(folder / CERTIFICATE, chain)
        return _issued(folder)

    def _is_stale(self, issued: Issued) -> bool:
        """Whether it was issued before the authorities changed."""
        trusted = b"".join(each.public_bytes(Encoding.PEM) for each in self.authorities)
        file = issued.folder / AUTHORITY
        return not file.is_file() or file.read_bytes() != trusted

    def _sign(
        self, builder: x509.CertificateBuilder, life: timedelta, key: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        now = self._time()
        builder = builder.serial_number(x509.random_serial_number())
        # RFC 5280 asks for it, and Python 3.13's ssl takes no certificate without it.
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        builder = builder.add_extension(signer, critical=False)
        return builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + life).sign(key, hashes.SHA256())

    def _time(self) -> datetime:
        return self._now or datetime.now(UTC)

    def _path(self, name: str) -> Path:
        return self._folder / name


def place(folder: Path) -> Path:
    """Creates the authority and this machine's certificate if they are missing, and renews what is due.

    Returns:
        The folder of this machine's certificate.
    """
    authority = Authority(folder)
    if LOCAL not in {each.name for each in authority.issued}:
        authority.issue(LOCAL, this_machine())
    for renewed in authority.renew():
        logger.info("the certificate %s is renewed, until %s", renewed.name, renewed.end.isoformat())
    return folder / "issued" / LOCAL


def shown(folder: Path) -> PeerFiles:
    """The files that the services of this machine show: those that the environment names, else the mesh's own.

    Args:
        folder: `State.peer_keys`.
    """
    own = folder / "issued" / LOCAL
    names = {"CERT": CERTIFICATE, "KEY": KEY, "CA": AUTHORITY}
    given = {what: os.environ.get(f"TIDEMILL_PEER_{what}") for what in names}
    named = given if given["CERT"] else dict.fromkeys(names)
    return PeerFiles(*(Path(named[what] or own / name) for what, name in names.items()))


def this_machine() -> list[str]:
    """Names and addresses by which this machine is reached."""
    names = {socket.gethostname(), socket.getfqdn()}
    addresses = {"127.0.0.1", "::1"}
    with suppress(OSError):
        addresses |= {str(each[4][0]) for each in socket.getaddrinfo(socket.gethostname(), None)}
    valid = [name.lower() for name in sorted(names) if _HOST.fullmatch(name.lower())]
    return list(dict.fromkeys(["localhost", *valid, *sorted(each.partition("%")[0] for each in addresses)]))


_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_-]{1,63})*")


def _host(text: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ip_address(text))
    if not _HOST.fullmatch(text):
        raise StackError(f"{text!r} is neither a host name nor an address.")
    return x509.DNSName(text)


def _authority(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    # One authority below an authority: the next one, which it signs when it is replaced.
    below = 1 if name == issuer else 0
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .add_extension(x509.BasicConstraints(True, below), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _issued(folder: Path) -> Issued:
    certificate = _read(folder / CERTIFICATE)
    hosts: tuple[str, ...] = ()
    with suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = tuple(str(each.value) for each in names)
    begin = certificate.not_valid_before_utc + _CLOCK_SKEW
    return Issued(folder.name, folder, hosts, begin, certificate.not_valid_after_utc)


def _read(path: Path) -> x509.Certificate:
    """The first certificate of a file."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise StackError(
            f"{path} cannot be read as a certificate ({error}): put it back, or remove {path.parent}."
        ) from error


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise StackError(f"{path} cannot be read as a key ({error}): put it back.") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    with replacing(path, OWNER_ONLY) as file:
        file.write(content)
