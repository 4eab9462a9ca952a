"""TLS at both doors of a real gateway process: certificates that change while it runs, and client certificates."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.stack.layout import python_path
from services.kit.errors import FailedPreconditionError
from services.kit.tls import Certificates, TlsFiles
from tests.faults.gateway_process import GatewayProcess, running_gateway
from tests.waiting import wait_until


@dataclass(frozen=True)
class Authority:
    """A certificate authority for tests."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                critical=True,
            )
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str, folder: Path) -> tuple[Path, Path]:
        """Writes a certificate for this machine and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        certificate = (
            _builder(name, str(issuer), key.public_key())
            .add_extension(names, critical=False)
            # Python 3.13 refuses certificates without it.
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        folder.mkdir(exist_ok=True)
        certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate_file, key_file


def _builder(name: str, issuer: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("first authority")


@pytest.fixture(scope="module")
def served(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, Path]]:
    """A gateway with TLS, and the folder of its files `door.pem` and `door.key`."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = authority.issue("door", folder)
    settings = {"TLS_CERT": str(certificate), "TLS_KEY": str(key), "HEADER_TIMEOUT_S": "2"}
    with running_gateway(tmp_path_factory.mktemp("state"), settings) as process:
        yield process, folder


def health(channel: grpc.Channel, timeout_s: float = 10) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status)


def shown(port: int) -> str:
    """The common name of the certificate's issuer at a port."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain) as wrapped:
        der = wrapped.getpeercert(binary_form=True)
    assert der is not None
    name = x509.load_der_x509_certificate(der).issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return str(name)


def test_both_doors_speak_tls_and_nothing_else(served: tuple[GatewayProcess, Path], authority: Authority) -> None:
    gateway, _ = served
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    assert httpx.get(f"https://127.0.0.1:{gateway.http}/v1/models", verify=trusting).status_code == 401
    with grpc.secure_channel(f"127.0.0.1:{gateway.grpc}", grpc.ssl_channel_credentials(authority.pem)) as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{gateway.http}/healthz")
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc}") as channel, pytest.raises(grpc.RpcError):
        health(channel)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_nothing_older_than_tls_1_2(served: tuple[GatewayProcess, Path]) -> None:
    gateway, _ = served
    for port in (gateway.http, gateway.grpc):
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, pytest.raises(OSError):
            old.wrap_socket(plain)


def test_a_handshake_that_never_comes_is_closed(served: tuple[GatewayProcess, Path]) -> None:
    gateway, _ = served
    with socket.create_connection(("127.0.0.1", gateway.http), timeout=30) as connection:
        assert connection.recv(1) == b""


def test_the_command_line_reaches_a_door_with_tls(
    served: tuple[GatewayProcess, Path], authority: Authority, tmp_path: Path
) -> None:
    gateway, _ = served
    roots = tmp_path / "ca.pem"
    roots.write_bytes(authority.pem)

    def listed(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        environment |= {"PYTHONPATH": python_path(), "TIDEMILL_API_KEY": gateway.key, **variables}
        command = [sys.executable, "-m", "gateway.cli.main", "models", "--address", f"127.0.0.1:{gateway.grpc}"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    # The API key was accepted; the error is about the missing service.
    assert "inference service does not answer" in listed(TIDEMILL_CA=str(roots)).stderr
    assert "set TIDEMILL_CA" in listed().stderr
    assert "cannot be read" in listed(TIDEMILL_CA=str(tmp_path / "nothing")).stderr


def test_certificates_change_under_running_clients(served: tuple[GatewayProcess, Path], authority: Authority) -> None:
    gateway, folder = served
    second = Authority.make("second authority")
    both = authority.pem + second.pem
    trusting = ssl.create_default_context(cadata=both.decode())
    with (
        httpx.Client(base_url=f"https://127.0.0.1:{gateway.http}", verify=trusting) as http,
        grpc.secure_channel(f"127.0.0.1:{gateway.grpc}", grpc.ssl_channel_credentials(both)) as channel,
    ):

        def answered() -> None:
            assert (http.get("/v1/models").status_code, health(channel)) == (401, 1)

        answered()
        # The certificate is replaced before its key: until both are there, the old ones stay in use.
        certificate, key = second.issue("door", folder / "new")
        certificate.replace(folder / "door.pem")
        wait_until(
            lambda: "keeping the old ones" in gateway.log.read_text(),
            "the message that the old ones are kept",
            meanwhile=answered,
        )
        assert shown(gateway.http) == shown(gateway.grpc) == "first authority"
        key.replace(folder / "door.key")
        wait_until(
            lambda: shown(gateway.http) == shown(gateway.grpc) == "second authority",
            "the new certificate at both doors",
            meanwhile=answered,
        )
        answered()


def test_clients_must_show_a_certificate(authority: Authority, tmp_path: Path) -> None:
    clients = Authority.make("clients")
    (tmp_path / "clients.pem").write_bytes(clients.pem)
    certificate, key = authority.issue("door", tmp_path)
    good, good_key = clients.issue("good", tmp_path)
    bad, bad_key = authority.issue("bad", tmp_path)
    settings = {
        "TLS_CERT": str(certificate),
        "TLS_KEY": str(key),
        "TLS_CLIENT_CA": str(tmp_path / "clients.pem"),
    }
    with running_gateway(tmp_path, settings) as gateway:
        url = f"https://127.0.0.1:{gateway.http}/v1/models"

        def http(*files: Path) -> int:
            context = ssl.create_default_context(cadata=authority.pem.decode())
            if files:
                context.load_cert_chain(files[0], files[1])
            return httpx.get(url, verify=context).status_code

        def rpc(*files: Path) -> int:
            pem, secret = (file.read_bytes() for file in files) if files else (None, None)
            credentials = grpc.ssl_channel_credentials(authority.pem, secret, pem)
            with grpc.secure_channel(f"127.0.0.1:{gateway.grpc}", credentials) as channel:
                return health(channel)

        assert (http(good, good_key), rpc(good, good_key)) == (401, 1)
        for files in ((), (bad, bad_key)):
            with pytest.raises(httpx.TransportError):
                http(*files)
            with pytest.raises(grpc.RpcError):
                rpc(*files)


def session_of(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession:
    """Sends a request on a connection of its own; returns its TLS session. Continues another session if one is given.

    Raises:
        OSError: the door refuses the connection.
    """
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as wrapped,
    ):
        wrapped.sendall(b"GET /v1/models HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n")
        # In TLS 1.3 a refusal comes after the handshake, as the session does.
        answer = wrapped.recv(65536)
        if not answer.startswith(b"HTTP/1.1 401"):
            raise ConnectionResetError(f"answered {answer!r}")
        assert wrapped.session is not None
        return wrapped.session


def test_other_client_authorities_count_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    """Whoever has a certificate of the old ones is refused from then on, also if a TLS session is continued."""
    first, second = Authority.make("first clients"), Authority.make("second clients")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(first.pem)
    certificate, key = authority.issue("door", tmp_path)
    old, new = first.issue("old", tmp_path), second.issue("new", tmp_path)
    settings = {"TLS_CERT": str(certificate), "TLS_KEY": str(key), "TLS_CLIENT_CA": str(trusted)}
    with running_gateway(tmp_path, settings) as gateway:

        def context(files: tuple[Path, Path], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
            made = ssl.create_default_context(cadata=authority.pem.decode())
            made.maximum_version = version
            made.load_cert_chain(*files)
            return made

        def rpc(files: tuple[Path, Path]) -> bool:
            pem, secret = (file.read_bytes() for file in files)
            credentials = grpc.ssl_channel_credentials(authority.pem, secret, pem)
            with grpc.secure_channel(f"127.0.0.1:{gateway.grpc}", credentials) as channel:
                # A client of TLS 1.3 that is refused takes the connection for lost, and tries until its deadline.
                with suppress(grpc.RpcError):
                    return health(channel, 2) == health_pb2.HealthCheckResponse.SERVING
                return False

        def refused(context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bool:
            try:
                session_of(gateway.http, context, session)
            except OSError:
                return True
            return False

        contexts = [context(old, version) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
        sessions = [(each, session_of(gateway.http, each)) for each in contexts]
        wait_until(lambda: rpc(old), "the gRPC door")
        assert refused(context(new))
        assert not rpc(new)

        trusted.write_bytes(second.pem)
        wait_until(lambda: not refused(context(new)) and rpc(new), "the new authority at both doors")
        assert refused(context(old))
        assert not rpc(old)
        assert [refused(*each) for each in sessions] == [True, True]
        assert gateway.process.poll() is None


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("a", tmp_path)
    _, other = authority.issue("b", tmp_path)
    junk, nothing = tmp_path / "junk", tmp_path / "nothing"
    junk.write_text("junk")
    for files, words in (
        (TlsFiles(certificate, other), "b.key does not match the certificate"),
        (TlsFiles(nothing, key), "nothing cannot be read"),
        (TlsFiles(certificate, nothing), "nothing cannot be read"),
        (TlsFiles(junk, key), "junk does not contain a certificate"),
        (TlsFiles(certificate, junk), "junk is not a private key"),
        (TlsFiles(certificate, key, junk), "junk does not contain a certificate"),
    ):
        with pytest.raises(FailedPreconditionError, match=words):
            Certificates.read(files)
    for settings, words in (
        ({"TLS_CERT": str(certificate)}, "set TIDEMILL_TLS_CERT and TIDEMILL_TLS_KEY together"),
        ({"TLS_CERT": str(certificate), "TLS_KEY": str(other)}, r"gateway cannot run: .*b\.key does not match"),
    ):
        with pytest.raises(AssertionError, match=words), running_gateway(tmp_path, settings):
            pass
