"""Probes of children, each in the child's own protocol. All block, with a short timeout."""

from __future__ import annotations

import base64
import http.client
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from infra.stack.addresses import HOST, Addresses
from infra.stack.certificates import PeerFiles
from infra.stack.kafka_access import brokers, is_legacy
from infra.stack.layout import Layout

if TYPE_CHECKING:
    import grpc

_TIMEOUT_S = 3.0
# ServerLiveResponse{live: true} of Triton's grpc_service.proto.
_LIVE = b"\x08\x01"

Probe = Callable[[Addresses], None]


class ProbeError(Exception):
    """The child is not ready; the message contains its answer."""


def http_ok(use: str, path: str, secret: Callable[[], str | None] = lambda: None) -> Probe:
    """Ready when GET `path` returns 200; `secret` returns `name:password` if one is required."""

    def probe(addresses: Addresses) -> None:
        connection = http.client.HTTPConnection(HOST, addresses.ports[use], timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path, headers=_authorization(secret()))
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"GET {path}: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ProbeError(f"GET {path} answered {response.status}")

    return probe


def _authorization(secret: str | None) -> dict[str, str]:
    return {} if secret is None else {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}


def kafka_broker(layout: Layout, use: str) -> Probe:
    """Ready when the cluster has a controller and the broker is in its metadata."""

    def probe(addresses: Addresses) -> None:
        address = (HOST, addresses.ports[use])
        try:
            # The driver logs and retries a refused connection for seconds; this check is quick and quiet.
            socket.create_connection(address, timeout=_TIMEOUT_S).close()
        except OSError as error:
            raise ProbeError(f"port {address[1]}: {error}") from error
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        options = brokers(layout, addresses.ports[use]).options()
        if is_legacy(layout.state):
            options["sasl_mechanism"] = "PLAIN"
        try:
            client = KafkaAdminClient(
                **options,
                request_timeout_ms=int(_TIMEOUT_S * 1000),
                # A frozen broker accepts connections but does not respond.
                bootstrap_timeout_ms=int(_TIMEOUT_S * 1000),
            )
            try:
                cluster = client.describe_cluster()
            finally:
                client.close()
        except (KafkaError, OSError) as error:
            raise ProbeError(f"the broker does not answer: {error}") from error
        if not cluster.get("brokers"):
            raise ProbeError("the cluster has no broker yet")

    return probe


def grpc_health(use: str, tls: PeerFiles | None = None) -> Probe:
    """Ready when grpc.health.v1 says SERVING for the server as a whole; `tls` are files to show to it."""

    def probe(addresses: Addresses) -> None:
        import grpc
        from grpc_health.v1 import health_pb2

        with _channel(addresses[use], tls) as channel:
            try:
                check = channel.unary_unary(
                    "/grpc.health.v1.Health/Check",
                    request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                    response_deserializer=health_pb2.HealthCheckResponse.FromString,
                )
                answer = check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                raise ProbeError(f"health check: {error.code().name}") from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ProbeError("health check: NOT_SERVING")

    return probe


def tls_handshake(use: str) -> Probe:
    """Ready when the door completes a TLS handshake.

    Nothing is called: the door may ask for a client's certificate, and its own is checked by its clients.
    """

    def probe(addresses: Addresses) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, _, port = addresses[use].rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S) as plain:
                context.wrap_socket(plain).close()
        except OSError as error:
            raise ProbeError(f"TLS handshake: {error}") from error

    return probe


def triton_alive(use: str, tls: PeerFiles | None = None) -> Probe:
    """Whether Triton answers at all, whatever the state of its models; `tls` are files to show to it."""

    def probe(addresses: Addresses) -> None:
        import grpc

        with _channel(addresses[use], tls) as channel:
            # Both messages are empty or one field long: the client library is not needed for them.
            ask: Callable[..., bytes] = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            try:
                live = ask(b"", timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                raise ProbeError(f"live check: {error.code().name}") from error
        if live != _LIVE:
            raise ProbeError("live check: the server says that it is not live")

    return probe


def _channel(address: str, tls: PeerFiles | None) -> grpc.Channel:
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options)
    try:
        chain, key, authority = (path.read_bytes() for path in tls)
    except OSError as error:
        raise ProbeError(f"the certificate cannot be read: {error}") from error
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, chain), options)


def every(*probes: Probe) -> Probe:
    """Ready when all of these probes succeed."""

    def probe(addresses: Addresses) -> None:
        for each in probes:
            each(addresses)

    return probe
