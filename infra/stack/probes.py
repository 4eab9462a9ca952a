"""Asks a child whether it is ready, in the child's own protocol. All block, with a short timeout."""

from __future__ import annotations

import http.client
import logging
import socket
from collections.abc import Callable, Mapping

_TIMEOUT_S = 3.0

Probe = Callable[[Mapping[str, int]], None]


class ProbeError(Exception):
    """The child is not ready; the message says what it answered."""


def http_ok(port_use: str, path: str) -> Probe:
    """Ready when GET `path` answers 200."""

    def probe(ports: Mapping[str, int]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", ports[port_use], timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"GET {path}: {error}") from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ProbeError(f"GET {path} answered {response.status}")

    return probe


def kafka_broker(port_use: str) -> Probe:
    """Ready when the cluster has a controller and the broker is in its metadata."""

    def probe(ports: Mapping[str, int]) -> None:
        address = ("127.0.0.1", ports[port_use])
        try:
            # The driver logs and retries a refused connection for seconds; asking first is quick and quiet.
            socket.create_connection(address, timeout=_TIMEOUT_S).close()
        except OSError as error:
            raise ProbeError(f"port {address[1]}: {error}") from error
        from kafka.admin import KafkaAdminClient
        from kafka.errors import KafkaError

        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        try:
            client = KafkaAdminClient(
                bootstrap_servers=f"127.0.0.1:{address[1]}",
                request_timeout_ms=int(_TIMEOUT_S * 1000),
                # A frozen broker accepts connections and says nothing.
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


def grpc_health(port_use: str) -> Probe:
    """Ready when grpc.health.v1 says SERVING for the server as a whole."""

    def probe(ports: Mapping[str, int]) -> None:
        import grpc
        from grpc_health.v1 import health_pb2

        with grpc.insecure_channel(f"127.0.0.1:{ports[port_use]}", [("grpc.enable_http_proxy", 0)]) as channel:
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


def every(*probes: Probe) -> Probe:
    """Ready when all of these are."""

    def probe(ports: Mapping[str, int]) -> None:
        for each in probes:
            each(ports)

    return probe
