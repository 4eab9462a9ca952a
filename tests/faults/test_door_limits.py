"""Hostile and slow callers at the doors: their requests are limited in size, time, number and memory.

The tests use a real gateway process, raw sockets, and the process's resident memory.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway.settings import GatewaySettings
from services.ingest.settings import IngestSettings
from tests.faults.gateway_process import GatewayProcess, running_gateway
from tests.faults.http2 import CONTINUATION, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, UnfinishedMessages, frame, kinds
from tests.waiting import wait_for, wait_until

MIB = 1024 * 1024


def test_headers_and_connections_of_sources_have_10_s_unless_the_operator_says_otherwise() -> None:
    assert GatewaySettings.model_fields["header_timeout_s"].default == 10
    assert IngestSettings.model_fields["source_connect_s"].default == 10


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    settings = {"HEADER_TIMEOUT_S": "1.5", "BODY_TIMEOUT_S": "1.5", "MAX_CONNECTIONS_PER_CLIENT": "200"}
    with running_gateway(tmp_path_factory.mktemp("state"), settings) as process:
        # Warms the process up: its memory grows with the first requests in any case.
        headers = {"x-api-key": process.key}
        with httpx.Client(base_url=f"http://127.0.0.1:{process.http}", headers=headers) as http:
            for _ in range(50):
                http.get("/v1/nothing")
        yield process


@pytest.fixture
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with its usual time limits."""
    with running_gateway(tmp_path_factory.mktemp("state")) as process:
        yield process


def status_of(answer: bytes) -> int:
    """The status of the last response in the bytes of a connection; 0 if there is none."""
    found = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return int(found[-1]) if found else 0


def read_to_end(connection: socket.socket) -> bytes:
    """All that the gateway sends until it closes the connection."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


def flood(connection: socket.socket, part: bytes, limit: int) -> tuple[int, bytes]:
    """Sends the same bytes again and again, up to a limit, until the gateway closes the connection.

    Returns:
        Number of bytes that the gateway took, and its answer.
    """
    sent, answer = 0, b""
    try:
        while sent < limit:
            readable, writable, _ = select.select([connection], [connection], [], 10)
            if readable:
                received = connection.recv(65536)
                if not received:
                    return sent, answer
                answer += received
            if writable:
                sent += connection.send(part)
    except ConnectionError:
        pass
    return sent, answer


@pytest.mark.parametrize(
    ("name", "begin", "part", "statuses"),
    [
        ("many headers", b"GET /v1/models HTTP/1.1\r\n", b"x-a: " + b"b" * 1000 + b"\r\n", (431,)),
        ("one long header", b"GET /v1/models HTTP/1.1\r\nx-a: ", b"b" * 65536, (431,)),
        ("a long name", b"GET /v1/models HTTP/1.1\r\n", b"b" * 65536, (431,)),
        ("a long path", b"GET /", b"b" * 65536, (431,)),
        ("empty lines", b"", b"\r\n" * 32768, (400, 431)),
        (
            "trailers",
            b"POST /v1/x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            b"x: " + b"y" * 999 + b"\r\n",
            (),
        ),
        ("a long trailer", b"POST /v1/x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", b"y" * 65536, ()),
        ("a chunk's extension", b"POST /v1/x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"y" * 65536, ()),
        ("a body without a key", b"POST /v1/x HTTP/1.1\r\ncontent-length: 999999999\r\n\r\n", b"y" * 65536, (401,)),
        ("requests without a pause", b"", b"GET /v1/models HTTP/1.1\r\n\r\n" * 2000, ()),
    ],
)
def test_what_has_no_end_is_cut_off_and_costs_no_memory(
    gateway: GatewayProcess, name: str, begin: bytes, part: bytes, statuses: tuple[int, ...]
) -> None:
    before = gateway.resident()
    with gateway.connect() as connection:
        connection.sendall(begin)
        sent, answer = flood(connection, part, 152 * MIB)
    grown = gateway.resident() - before
    assert sent < 152 * MIB or b"connection: close" in answer.lower(), f"{name}: all of it was taken"
    assert grown < 32 * MIB, f"{name}: {grown / MIB:.0f} MiB more"
    # The answer may be lost if the kernel resets a connection that is still sending.
    assert not answer or not statuses or status_of(answer) in statuses, answer[:300]


@pytest.mark.parametrize(
    ("count", "size", "status"), [(101, 1, 431), (100, 1, 401), (3, 30_000, 431), (1, 60_000, 401)]
)
def test_headers_are_bounded_in_number_and_size(gateway: GatewayProcess, count: int, size: int, status: int) -> None:
    head = b"GET /v1/models HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"v" * size) for n in range(count)) + b"\r\n"
    with gateway.connect() as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        assert status_of(read_to_end(connection)) == status


def test_two_hundred_callers_who_never_end_their_headers(gateway: GatewayProcess) -> None:
    before = gateway.resident()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(gateway.connect())
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 60_000)
        assert gateway.resident() - before < 64 * MIB


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /v1/models HTTP/1.1\r\nx: ",
        b"\r\n",
        b"POST /v1/records HTTP/1.1\r\ncontent-length: 100\r\n\r\n",
        b"POST /v1/records HTTP/1.1\r\nx-api-key: %s\r\ncontent-length: 100\r\n\r\n{",
        b"POST /v1/records HTTP/1.1\r\nx-api-key: %s\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"POST /healthz HTTP/1.1\r\ncontent-length: 100\r\n\r\n{",
    ],
)
def test_what_stays_unfinished_is_closed(gateway: GatewayProcess, begin: bytes) -> None:
    with gateway.connect() as connection:
        connection.sendall(begin.replace(b"%s", gateway.key.encode()))
        read_to_end(connection)  # ends, or the socket's own limit fails the test


def test_an_empty_line_does_not_keep_an_idle_connection_open(gateway: GatewayProcess) -> None:
    with gateway.connect() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
        assert b"401" in connection.recv(65536)
        connection.sendall(b"\r\n")
        read_to_end(connection)


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"GET /v1/models HTTP/1.1\r\n", b"a: b\r\n"),
        (b"POST /v1/records HTTP/1.1\r\nx-api-key: %s\r\ncontent-length: 1000000\r\n\r\n", b"{"),
        (b"POST /v1/records HTTP/1.1\r\nx-api-key: %s\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
    ],
)
def test_what_trickles_is_closed(gateway: GatewayProcess, begin: bytes, drip: bytes) -> None:
    with gateway.connect() as connection:
        connection.sendall(begin.replace(b"%s", gateway.key.encode()))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while True:
                readable, _, _ = select.select([connection], [], [], 0.2)
                if readable:
                    part = connection.recv(65536)
                    if not part:
                        break
                    answer += part
                else:
                    connection.sendall(drip)
        assert status_of(answer) == 408


def read_answer(connection: socket.socket) -> bytes:
    """The next response, which has a body of a known size."""
    answer = b""
    while (found := re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n", answer, re.DOTALL)) is None or len(
        answer
    ) < found.end() + int(found[1]):
        part = connection.recv(65536)
        assert part, answer
        answer += part
    return answer


@pytest.mark.parametrize(("target", "status"), [("/v1/files", 400), ("/v1/nothing", 404), ("/console", 404)])
def test_a_short_body_that_comes_after_its_response_does_not_cost_the_connection(
    gateway: GatewayProcess, target: str, status: int
) -> None:
    key = f"x-api-key: {gateway.key}\r\n"
    with gateway.connect() as connection:
        for _ in range(3):
            connection.sendall(f"POST {target} HTTP/1.1\r\n{key}content-length: 2\r\n\r\n".encode())
            answer = read_answer(connection)
            assert (status_of(answer), b"connection: close" in answer) == (status, False)
            connection.sendall(b"{}")


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize(
    "size",
    ["content-length: 1000000\r\n", "transfer-encoding: chunked\r\n", "content-length: 2\r\nexpect: 100-continue\r\n"],
)
def test_a_response_without_the_rest_of_a_long_body_says_that_the_connection_ends(
    gateway: GatewayProcess, size: str, key: bool
) -> None:
    sent = f"x-api-key: {gateway.key}\r\n" if key else ""
    with gateway.connect() as connection:
        connection.sendall(f"POST /v1/files HTTP/1.1\r\n{sent}{size}\r\n".encode())
        answer = read_to_end(connection)
        assert (status_of(answer), b"connection: close" in answer) == (400 if key else 401, True)


def test_a_response_before_the_next_requests_body_does_not_end_that_request(gateway: GatewayProcess) -> None:
    head = f"POST /v1/records HTTP/1.1\r\nx-api-key: {gateway.key}\r\ncontent-length: 2\r\n\r\n".encode()
    with gateway.connect() as connection:
        connection.sendall(head + b"{}" + head + b"{")
        assert status_of(read_answer(connection)) == 400
        connection.sendall(b"}")
        assert status_of(read_answer(connection)) == 400


def test_a_caller_that_does_not_take_its_answer_holds_no_memory(gateway: GatewayProcess) -> None:
    before = gateway.resident()
    with gateway.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(TimeoutError):
            connection.settimeout(2)
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\n\r\n" * 60)
        assert gateway.resident() - before < 32 * MIB


def test_slow_bodies_share_a_budget(patient: GatewayProcess) -> None:
    size = 60 * 1_000_000
    head = f"POST /v1/records HTTP/1.1\r\nx-api-key: {patient.key}\r\ncontent-length: {size}\r\n\r\n".encode()
    before = patient.resident()
    answers: list[bytes] = []
    with contextlib.ExitStack() as stack:
        taken = []
        for _ in range(12):
            connection = stack.enter_context(patient.connect())
            connection.sendall(head)
            if select.select([connection], [], [], 0.5)[0]:
                answers.append(read_to_end(connection))
            else:
                taken.append(connection)
        assert len(taken) == 4  # of 60 MB in 256 MiB
        for connection in taken:
            connection.sendall(b" " * (size - 1))
        grown = patient.resident() - before
        assert grown < 400 * MIB, f"{grown / MIB:.0f} MiB more"
        for answer in answers:
            assert status_of(answer) == 503
            assert b"\r\nretry-after:" in answer.lower()
    # The share of callers who left is free again.
    url, headers = f"http://127.0.0.1:{patient.http}/v1/records", {"x-api-key": patient.key}

    def code() -> int:
        return httpx.post(url, content=b" " * size, headers=headers).status_code

    assert wait_for(code, lambda found: found != 503) == 400  # the body is read, and it is not JSON


def test_a_bomb_is_found_before_it_goes_off(patient: GatewayProcess) -> None:
    bomb = gzip.compress(b" " * 500 * MIB)
    before = patient.resident()
    for path in ("/v1/records", "/v1/chat/completions", "/v2/models/m/infer"):
        headers = {"x-api-key": patient.key, "content-encoding": "gzip"}
        answer = httpx.post(f"http://127.0.0.1:{patient.http}{path}", content=bomb, headers=headers, timeout=60)
        assert answer.status_code == 413
    assert patient.resident() - before < 128 * MIB


def test_one_address_has_only_so_many_connections(gateway: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(gateway.connect())
        refused = stack.enter_context(gateway.connect())
        answer = read_to_end(refused)
        assert status_of(answer) == 503
        assert b"\r\nretry-after:" in answer.lower()
    url = f"http://127.0.0.1:{gateway.http}/healthz"
    wait_for(lambda: httpx.get(url).status_code, lambda code: code == 200, "an answer once those are closed")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with 12 connections at each door, 4 of them of one address."""
    settings = {"MAX_CONNECTIONS": "12", "MAX_CONNECTIONS_PER_CLIENT": "4"}
    with running_gateway(tmp_path_factory.mktemp("state"), settings) as process:
        yield process


def connect_from(number: int, port: int) -> socket.socket:
    """A connection from one of loopback's addresses."""
    return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(f"127.0.0.{number}", 0))


def greeted(number: int, port: int) -> socket.socket:
    """A connection that the gRPC door has accepted."""
    connection = connect_from(number, port)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
    assert connection.recv(9)[3] == SETTINGS
    return connection


def hung_up(connection: socket.socket) -> bool:
    """Whether the gateway has ended a connection; what it sent before is read."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def answers(gateway: GatewayProcess) -> bool:
    """Whether both doors answer a new connection."""
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc}") as channel:
        health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        health(b"", timeout=30, wait_for_ready=True)
    return httpx.get(f"http://127.0.0.1:{gateway.http}/healthz").status_code == 200


def test_all_addresses_together_have_only_so_many_http_connections(crowded: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(12):
            stack.enter_context(connect_from(2 + number, crowded.http))
        answer = read_to_end(stack.enter_context(connect_from(50, crowded.http)))
        assert status_of(answer) == 503
        assert b"\r\nretry-after:" in answer.lower()
    wait_until(lambda: answers(crowded), "room for a connection")


def test_all_addresses_together_have_only_so_many_grpc_connections(crowded: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(12):
            stack.enter_context(greeted(2 + number, crowded.grpc))
        # Who comes too late is hung up on before anything is read.
        late = stack.enter_context(connect_from(50, crowded.grpc))
        with contextlib.suppress(ConnectionError):
            late.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        assert read_to_end(late) == b""
    wait_until(lambda: answers(crowded), "room for a connection")


def test_one_address_has_only_so_many_grpc_connections(crowded: GatewayProcess) -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(greeted(60, crowded.grpc))
        greedy = [stack.enter_context(greeted(61, crowded.grpc)) for _ in range(7)]
        wait_until(lambda: sum(map(hung_up, greedy)) >= 3, "the end of what is too much")
        left = [connection for connection in (other, *greedy) if not hung_up(connection)]
        assert len(left) == 5
        for connection in left:
            connection.settimeout(1)
            connection.sendall(frame(PING, 0, 0, b"12345678"))
            assert PING in kinds(connection)
        assert answers(crowded)
    text = httpx.get(f"http://127.0.0.1:{crowded.http}/metrics").text
    assert re.search(r'^door_refusals_total\{reason="too_many_connections"\} [1-9]', text, re.MULTILINE)


# The gRPC door


def test_metadata_without_end_costs_no_memory(gateway: GatewayProcess) -> None:
    before = gateway.resident()
    with socket.create_connection(("127.0.0.1", gateway.grpc), timeout=30) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        # HEADERS without END_HEADERS, then CONTINUATION without end: literal fields that are not indexed (RFC 7541).
        field = b"\x00\x04x-ab\x7f\x81\x07" + b"y" * 1024
        connection.sendall(frame(HEADERS, 0, 1, field))
        flood(connection, frame(CONTINUATION, 0, 1, field * 15), 512 * MIB)  # gRPC's core may read and drop all of it
    # What its core holds of frames on the way, and what its allocator keeps of them: 92 MiB on a busy machine.
    assert gateway.resident() - before < 256 * MIB


def test_large_metadata_is_refused(gateway: GatewayProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc}") as channel:
        call: Any = channel.unary_unary("/tidemill.ingest.v1.IngestService/ListImports")
        with pytest.raises(grpc.RpcError) as found:
            call(b"", metadata=(("x-a", "b" * 100_000),), timeout=20)
        assert found.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


def test_messages_without_a_key_are_not_read(gateway: GatewayProcess) -> None:
    before = gateway.resident()
    options = [("grpc.max_send_message_length", 64 * MIB)]
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc}", options=options) as channel:
        call: Any = channel.unary_unary("/tidemill.ingest.v1.IngestService/IngestRecords")
        pending = [call.future(b"x" * 60 * MIB, timeout=20) for _ in range(4)]
        for one in pending:
            assert one.code() is grpc.StatusCode.UNAUTHENTICATED
    assert gateway.resident() - before < 64 * MIB


@pytest.mark.parametrize("method", ["tidemill.ingest.v1.IngestService/IngestRecords", "grpc.health.v1.Health/Check"])
def test_messages_that_are_never_finished_share_a_budget(patient: GatewayProcess, method: str) -> None:
    before = patient.resident()
    with contextlib.closing(UnfinishedMessages(patient.grpc, f"/{method}", patient.key)) as slow:
        for _ in range(24):
            slow.call(60 * 1_000_000)
        taken = slow.send_all(silence_s=6)
        grown = patient.resident() - before
        assert taken < 24 * 60 * 1_000_000 / 3, f"{taken / MIB:.0f} MiB were taken"
        assert grown < 500 * MIB, f"{grown / MIB:.0f} MiB more"
        # Others are answered meanwhile, and those who were refused know when to retry.
        assert len(slow.ended) >= 20
        with grpc.insecure_channel(f"127.0.0.1:{patient.grpc}") as channel:
            health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            if "ingest" in method:
                health(b"", timeout=20)
            call: Any = channel.unary_unary("/tidemill.ingest.v1.IngestService/IngestRecords")
            with pytest.raises(grpc.RpcError) as found:
                call(b"", metadata=(("x-api-key", patient.key),), timeout=20)
            expected = grpc.StatusCode.RESOURCE_EXHAUSTED if "ingest" in method else grpc.StatusCode.UNAVAILABLE
            assert found.value.code() is expected
            if "ingest" in method:
                failed: Any = found.value
                status = rpc_status.from_call(failed)
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                assert status is not None
                assert status.details[0].Unpack(info)
                assert status.details[1].Unpack(retry)
                assert info.reason == "MESSAGES_UNDER_WAY"
                assert retry.retry_delay.seconds > 0
    assert "Traceback" not in patient.log.read_text()


def test_messages_that_streams_never_finish_end_the_streams(patient: GatewayProcess) -> None:
    path = "/inference.GRPCInferenceService/ModelStreamInfer"
    before = patient.resident()
    with (
        contextlib.closing(UnfinishedMessages(patient.grpc, path, patient.key)) as idle,
        contextlib.closing(UnfinishedMessages(patient.grpc, path, patient.key)) as slow,
    ):
        for _ in range(20):
            idle.call(1000)
        for _ in range(24):
            slow.call(60 * 1_000_000)
        slow.send_all(silence_s=3)
        grown = patient.resident() - before
        assert len(slow.ended) == 24
        assert grown < 1024 * MIB, f"{grown / MIB:.0f} MiB more"  # of 1,373
        idle.send_all(silence_s=1)
        assert idle.ended == set()  # they only wait
    assert "Traceback" not in patient.log.read_text()


def test_streams_of_requests_are_bounded_in_number(tmp_path: Path) -> None:
    with running_gateway(tmp_path, {"MAX_REQUEST_STREAMS": "8"}) as gateway:
        path = "/tidemill.ingest.v1.IngestService/StreamRecords"
        with contextlib.closing(UnfinishedMessages(gateway.grpc, path, gateway.key)) as slow:
            for _ in range(10):
                slow.call(1_000_000)
            slow.send_all(silence_s=2)
            assert len(slow.ended) == 6  # half of the streams are one key's


def test_connections_that_never_speak_are_closed(gateway: GatewayProcess) -> None:
    with socket.create_connection(("127.0.0.1", gateway.grpc), timeout=30) as connection:
        read_to_end(connection)  # ends within the handshake's time, or the socket's own limit fails the test


def test_idle_pings_are_borne_and_a_flood_of_them_is_not(gateway: GatewayProcess) -> None:
    ping = frame(PING, 0, 0, b"12345678")
    with socket.create_connection(("127.0.0.1", gateway.grpc), timeout=1.1) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))
        answered = kinds(connection)
        for _ in range(5):
            connection.sendall(ping)
            answered += kinds(connection)  # and 1.1 s are over
        assert GOAWAY not in answered
        assert answered.count(PING) >= 5
        connection.sendall(ping * 20)
        assert GOAWAY in kinds(connection)


def test_reflection_without_a_key_is_unauthenticated(gateway: GatewayProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc}") as channel:
        ask: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as found:
            list(ask(iter([b""]), timeout=20))
        assert found.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "Traceback" not in gateway.log.read_text()
