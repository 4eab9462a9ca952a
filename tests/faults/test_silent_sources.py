"""Sources that accept a connection and never answer do not block other calls or imports."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.ingest.v1.source_import_pb2 import Import, JsonLinesSource, SourceSpec

from infra.stack.testing import running_parts
from tests.service_process import ServiceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real

AT_ONCE = 8


class SilentServer:
    """Accepts connections; answers nothing, or only the head of the first request of a path."""

    def __init__(self, *, with_head: bool) -> None:
        self._with_head = with_head
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self._lock = threading.Lock()
        self.hanging: list[socket.socket] = []
        self.left = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}.jsonl"

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listening.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._hold, args=(connection,), daemon=True).start()

    def _hold(self, connection: socket.socket) -> None:
        connection.recv(65536)
        if self._with_head:
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 1000000\r\n\r\n')
        with self._lock:
            self.hanging.append(connection)
        try:
            connection.recv(1)
        except OSError:
            return
        with self._lock:
            self.hanging.remove(connection)
            self.left += 1

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in list(self.hanging):
            connection.close()


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("ingest")
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as stack:
        settings = {
            "TIDEMILL_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/ingest.sqlite",
            "TIDEMILL_SOURCE_ROOTS": str(folder),
            "TIDEMILL_SOURCE_HOSTS": "127.0.0.1:*",
            "TIDEMILL_SOURCE_SILENCE_S": "600",
            "TIDEMILL_SURVEYED_AT_ONCE": str(AT_ONCE),
        }
        process = ServiceProcess("ingest", folder, settings)
        process.start()
        yield process
        process.kill()


def request(uri: str) -> pb.CreateImportRequest:
    return pb.CreateImportRequest(spec=SourceSpec(source="s", json_lines=JsonLinesSource(uri=uri)))


def file_of(ingest: ServiceProcess, name: str) -> str:
    path: Path = ingest.folder / f"{name}.jsonl"
    path.write_text(f'{{"text": "{name}"}}\n')
    return str(path)


def test_looks_at_silent_sources_delay_no_one(ingest: ServiceProcess) -> None:
    stub, server = stubs.IngestServiceStub(ingest.channel()), SilentServer(with_head=False)
    try:
        done = stub.CreateImport(request(file_of(ingest, "before")), timeout=30).source_import
        calls = [stub.CreateImport.future(request(server.url(str(i))), timeout=500) for i in range(AT_ONCE)]
        wait_until(lambda: len(server.hanging) == AT_ONCE)
        # Forty of each, enough to use up the threads that all other calls share.
        for number in range(40):
            stub.ListImports(pb.ListImportsRequest(), timeout=60)
            stub.GetImport(pb.GetImportRequest(name=done.name), timeout=60)
            batch = pb.IngestRecordsRequest(records=[Record(source="s", text=f"meanwhile {number}")])
            assert len(stub.IngestRecords(batch, timeout=60).record_ids) == 1
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateImport(request(server.url("one-more")), timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not any(call.done() for call in calls), "all of that was answered while the sources were silent"
        # When a caller leaves, its check of the source ends, and another source gets its place.
        calls[0].cancel()
        wait_until(lambda: server.left == 1)
        wait_until(lambda: _accepted(stub, request(file_of(ingest, "after"))))
        for call in calls:
            call.cancel()
        wait_until(lambda: server.left == AT_ONCE)
    finally:
        server.stop()


def _accepted(stub: stubs.IngestServiceStub, wanted: pb.CreateImportRequest) -> bool:
    try:
        stub.CreateImport(wanted, timeout=60)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


def test_a_cancelled_import_stops_reading_and_the_next_one_begins(ingest: ServiceProcess) -> None:
    stub, server = stubs.IngestServiceStub(ingest.channel()), SilentServer(with_head=True)
    try:
        # As many as are pulled in parallel; checking a source only needs the head.
        names = [stub.CreateImport(request(server.url(f"b{i}")), timeout=60).source_import.name for i in range(2)]
        wait_until(lambda: len(server.hanging) == 2)
        waiting = stub.CreateImport(request(file_of(ingest, "waiting")), timeout=60).source_import.name
        for name in names:
            stub.CancelImport(pb.CancelImportRequest(name=name), timeout=60)
        watched = stub.WatchImport(pb.WatchImportRequest(name=waiting), timeout=120)
        assert [answer.source_import.state for answer in watched][-1] == Import.STATE_SUCCEEDED
        wait_until(lambda: not server.hanging)
    finally:
        server.stop()


def test_the_service_ends_in_order_while_sources_are_silent(ingest: ServiceProcess) -> None:
    server = SilentServer(with_head=False)
    channel = ingest.connect()
    try:
        calls = [
            stubs.IngestServiceStub(channel).CreateImport.future(request(server.url(f"c{i}")), timeout=500)
            for i in range(3)
        ]
        wait_until(lambda: len(server.hanging) == 3)
        assert ingest.stop() == 0
        assert {call.code() for call in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    finally:
        server.stop()
        channel.close()
