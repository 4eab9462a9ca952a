"""Signed folders: who made a build, and whether its files are unchanged.

A signature is an OpenSSF Model Signing bundle (https://github.com/sigstore/model-transparency) beside the files: a
statement with the sha256 of every file, signed with an elliptic-curve key. Only the signer has the private key;
verifying needs the folder of trusted public keys. To rotate, move the private key elsewhere and restart the signer: it
creates a new one, and earlier builds stay trusted until the earlier public key is deleted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.kit.errors import FailedPreconditionError
from services.kit.ids import new_id
from services.kit.storage.artifacts import digest_files, file_digest, files_below
from services.kit.whole_files import replacing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from model_signing import hashing

logger = logging.getLogger(__name__)

SIGNATURE = "tidemill.sig"
"""File name of a build's signature."""
MANIFEST = "tidemill.json"
"""File name of a build's manifest, which contains its digest."""
DAMAGED, UNSIGNED, UNTRUSTED, MISMATCH = "BUILD_DAMAGED", "BUILD_UNSIGNED", "BUILD_UNTRUSTED", "DIGEST_MISMATCH"
"""Reasons of the errors of `TrustedKeys`."""
_FINGERPRINT = re.compile("[0-9a-f]{64}")


class SigningKey:
    """The private key of the mesh, and the folder in which its public key is published."""

    def __init__(self, private: Path, trusted: Path) -> None:
        """Args:
        private: PEM file of the private key, readable by its owner only.
        trusted: folder of the public keys, see `TrustedKeys`.
        """
        self.private = private
        self.trusted = trusted

    def ensure(self) -> str:
        """Creates the key if missing, and publishes its public key.

        Returns:
            The key's fingerprint.

        Raises:
            FailedPreconditionError: the key cannot be read, or others can read it.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        if not self.private.exists():
            self.private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store_private(ec.generate_private_key(ec.SECP256R1()))
        public = _public_pem(self._load())
        fingerprint = _fingerprint(public)
        self.trusted.mkdir(parents=True, exist_ok=True)
        target = self.trusted / f"{fingerprint}.pub"
        if not target.is_file() or target.read_bytes() != public:
            with replacing(target) as file:
                file.write(public)
            logger.info("builds are signed with the key %s", fingerprint[:16])
        return fingerprint

    def sign(self, folder: Path) -> None:
        """Signs every file below a folder; replaces an earlier signature.

        Raises:
            FailedPreconditionError: there is no usable key.
        """
        from model_signing import signing

        self._load()
        target = folder / SIGNATURE
        target.unlink(missing_ok=True)
        partial = folder.with_name(f".{folder.name}.{new_id()}.sig")
        try:
            config = signing.Config()  # type: ignore[no-untyped-call]
            config.use_elliptic_key_signer(private_key=self.private)
            config.set_hashing_config(_hashing()).sign(folder, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _load(self) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

        try:
            mode = self.private.stat().st_mode
            key = serialization.load_pem_private_key(self.private.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise self._unusable(f"cannot be read: {error}") from error
        if stat.S_IMODE(mode) & 0o077:
            raise self._unusable(f"can be read by others (mode {stat.S_IMODE(mode):04o}); set it to 0600")
        if not isinstance(key, EllipticCurvePrivateKey):
            raise self._unusable("is not an elliptic-curve key")
        return key

    def _unusable(self, why: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"The private key that signs builds, {self.private}, {why}.",
            reason="SIGNING_KEY_UNUSABLE",
            metadata={"file": str(self.private)},
        )

    def _store_private(self, key: EllipticCurvePrivateKey) -> None:
        from cryptography.hazmat.primitives import serialization

        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        partial = self.private.with_name(f".{self.private.name}.{new_id()}")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(pem)
                stream.flush()
                os.fsync(stream.fileno())
            # A link instead of a rename: of two processes that start at once, the second one uses the key of the first.
            with suppress(FileExistsError):
                self.private.hardlink_to(partial)
        finally:
            partial.unlink(missing_ok=True)


class TrustedKeys:
    """Verifies signed folders against the public keys in a folder, `<fingerprint>.pub` each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> frozenset[str]:
        """File names of the trusted keys; if they change, builds must be verified again."""
        try:
            return frozenset(path.name for path in self._folder.iterdir() if path.suffix == ".pub")
        except FileNotFoundError:
            return frozenset()

    def verify(self, folder: Path) -> Mapping[str, str]:
        """Reads every file below a folder and compares it with the signature.

        Returns:
            sha256 of each signed file, by its path relative to the folder.

        Raises:
            FailedPreconditionError: with reason BUILD_UNSIGNED, BUILD_UNTRUSTED (signed by a key that is not trusted,
                or the signature is invalid) or BUILD_DAMAGED (metadata `file`, `expected` and `found`).
        """
        from model_signing import verifying

        bundle = _read_bundle(folder)
        key = self._key(folder, bundle)
        try:
            config = verifying.Config()  # type: ignore[no-untyped-call]
            config.use_elliptic_key_verifier(public_key=key)
            config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
        except Exception as error:
            # The library has no error types of its own, so we look for the file that caused the error.
            raise _why(folder, bundle, error) from error
        return _signed_files(bundle)

    def verify_build(self, folder: Path, digest: str) -> None:
        """Verifies a build, and that it is the expected one: the digest covers its files except the manifest.

        Raises:
            FailedPreconditionError: as `verify`; or DIGEST_MISMATCH: it is a signed build, but not the expected one.
        """
        files = self.verify(folder)
        found = digest_files({name: content for name, content in files.items() if name != MANIFEST})
        if found != digest:
            raise _error(
                MISMATCH,
                folder,
                f"its digest is {found}, not {digest}: it is another build.",
                {"expected": digest, "found": found},
            )

    def _key(self, folder: Path, bundle: Any) -> Path:
        try:
            fingerprint = str(bundle["verificationMaterial"]["publicKey"]["hint"])
        except (KeyError, TypeError) as error:
            raise _error(UNTRUSTED, folder, f"{SIGNATURE} does not name a key.") from error
        key = self._folder / f"{fingerprint}.pub"
        if not _FINGERPRINT.fullmatch(fingerprint) or not key.is_file():
            raise _error(
                UNTRUSTED,
                folder,
                f"it is signed with the key {fingerprint[:16]}, which is not among the trusted keys in {self._folder}.",
                {"key": fingerprint[:64]},
            )
        return key


def _hashing() -> hashing.Config:
    from model_signing import hashing

    config = hashing.Config()  # type: ignore[no-untyped-call]
    config.use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _public_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(public_pem: bytes) -> str:
    return hashlib.sha256(public_pem).hexdigest()


def _read_bundle(folder: Path) -> Any:
    try:
        return json.loads((folder / SIGNATURE).read_bytes())
    except FileNotFoundError as error:
        raise _error(UNSIGNED, folder, f"it has no {SIGNATURE}; train again to get a signed one.") from error
    except (OSError, ValueError) as error:
        raise _damaged(folder, SIGNATURE, "a signature", "a file that cannot be read") from error


def _signed_files(bundle: Any) -> dict[str, str]:
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return {item["name"]: item["digest"] for item in statement["predicate"]["resources"]}


def _why(folder: Path, bundle: Any, error: Exception) -> FailedPreconditionError:
    try:
        expected = _signed_files(bundle)
    except (KeyError, TypeError, ValueError):
        return _damaged(folder, SIGNATURE, "a signature", "a file that cannot be read")
    found: dict[str, str] = {}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name != SIGNATURE:
            found[name] = "not a plain file" if path.is_symlink() or not path.is_file() else file_digest(path)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return _damaged(folder, name, expected.get(name, "no such file"), found.get(name, "no such file"))
    return _error(UNTRUSTED, folder, f"its signature does not verify: {error}")


def _damaged(folder: Path, file: str, expected: str, found: str) -> FailedPreconditionError:
    facts = {"file": file, "expected": expected, "found": found}
    return _error(DAMAGED, folder, f"{file} is damaged: expected {expected}, found {found}.", facts)


def _error(reason: str, folder: Path, why: str, facts: Mapping[str, str] | None = None) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The build in {folder} is refused: {why}", reason=reason, metadata={"folder": str(folder), **(facts or {})}
    )
