"""Routes on their way from the control plane to a data plane, over gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import inference_service_pb2_grpc as stubs
from tidemill.inference.v1 import route_pb2

from services.inference.app.publishing import Publishing
from services.inference.app.reconciling import Reconciler
from services.inference.app.route_book import Reader, RouteBook
from services.inference.entrypoints.servicer import InferenceServicer
from services.kit.errors import FailedPreconditionError, NotFoundError, UnavailableError
from services.kit.grpc.server import create_server
from services.kit.telemetry.metrics import RequestMetrics
from services.serving.adapters.death_reports import DeathReports
from services.serving.adapters.route_feed import RouteFeed
from services.serving.adapters.route_file import RouteFile
from services.serving.adapters.route_messages import route_from, route_to
from services.serving.app.routing import RoutingTable
from services.serving.domain.answer import Task
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Role, Route, RoutedVersion, Withdrawal
from tests.waiting import eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def route(number: int, model: str = "m", generation: int = 1) -> Route:
    """A route of one version."""
    labels = ("a", f"b{number}")
    users = ((0, SLOTS),)
    only = RoutedVersion(
        model, number, Task.TEXT_CLASSIFICATION, "int8", labels, "", Role.SERVING, 100, users, generation
    )
    return Route(model, NOW, (only,), etag=str(number))


@dataclass
class Failures:
    """Takes reports as publishing does."""

    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def report_failure(self, model: str, generation: int, number: int) -> bool:
        self.seen.append((model, number, generation))
        return True


@dataclass
class Control:
    """A control plane that can go away and come back at the same address."""

    folder: Path
    book: RouteBook = field(default_factory=RouteBook)
    failures: Failures = field(default_factory=Failures)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = create_server(RequestMetrics("inference"), traced=False, stopping=self.stopping)
        servicer = InferenceServicer(cast(Publishing, None), cast(Reconciler, self.failures), self.book)
        stubs.add_InferenceServiceServicer_to_server(servicer, server)
        server.add_insecure_port(self.address)
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    @property
    def address(self) -> str:
        return f"unix:{self.folder / 'inference.sock'}"

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[tuple[RoutingTable, RouteFeed]]:
        """A data plane that watches it."""
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(self.address, options) as channel:
            table = RoutingTable()
            feed = RouteFeed(self.stub(channel), table, RouteFile(self.folder / "routes" / "routes.json"))
            await feed.restore()
            running = asyncio.create_task(feed.run())
            try:
                yield table, feed
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    @staticmethod
    def stub(channel: grpc.aio.Channel) -> Any:
        return stubs.InferenceServiceStub(channel)


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path)


def number_of(table: RoutingTable, name: str = "m") -> int | None:
    try:
        return table.choose(ModelReference(name)).number
    except (UnavailableError, NotFoundError, FailedPreconditionError):
        return None


async def test_all_routes_arrive_and_then_each_change(control: Control) -> None:
    control.book.set(route(1))
    async with control.running(), control.watched() as (table, feed):
        await eventually(lambda: number_of(table) == 1)
        assert feed.connected
        control.book.set(route(2, generation=2))
        control.book.set(route(1, "other"))
        await eventually(lambda: number_of(table) == 2 and number_of(table, "other") == 1)
        assert (table.generation("m.2"), table.generation("m.1"), table.generation("m")) == (2, 0, 0)
        control.book.set(Route("m", NOW, withdrawn=Withdrawal("damaged", "BUILD_DAMAGED", {"f": "x"})))
        await eventually(lambda: number_of(table) is None)
        with pytest.raises(FailedPreconditionError, match="models/m is out of service: damaged") as caught:
            table.choose(ModelReference("m"))
        assert (caught.value.reason, caught.value.metadata) == ("BUILD_DAMAGED", {"f": "x", "model": "models/m"})
        control.book.set(Route("m", NOW))
        await eventually(lambda: _error(table, "m") is NotFoundError)


def _error(table: RoutingTable, name: str) -> type[Exception] | None:
    try:
        table.choose(ModelReference(name))
    except Exception as error:
        return type(error)
    return None


async def test_the_last_known_routes_keep_serving_without_the_control_plane(control: Control) -> None:
    async with control.watched() as (table, feed):
        with pytest.raises(UnavailableError) as caught:
            table.choose(ModelReference("m"))
        assert caught.value.reason == "ROUTES_UNKNOWN"
        control.book.set(route(1))
        control.book.set(route(1, "gone"))
        async with control.running():
            await eventually(lambda: number_of(table) == 1)
        await eventually(lambda: not feed.connected)
        assert number_of(table) == 1
        # It comes back with other routes.
        control.book = RouteBook()
        control.book.set(route(2, generation=2))
        async with control.running():
            await eventually(lambda: number_of(table) == 2)
            assert _error(table, "gone") is NotFoundError
            # They are saved once they are used.
            file = control.folder / "routes" / "routes.json"
            await eventually(lambda: "versions/2" in file.read_text())
    # A data plane that starts without it.
    async with control.watched() as (table, feed):
        assert (number_of(table), feed.connected) == (2, False)
        assert _error(table, "gone") is NotFoundError


async def test_it_starts_in_spite_of_a_damaged_file(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    file = control.folder / "routes" / "routes.json"
    file.parent.mkdir()
    for damage in ('{"routes": [{"model": "models/m", "ver', "\0\1", '{"routes": [{"versions": [{"task": "?"}]}]}'):
        file.write_text(damage)
        async with control.watched() as (table, _):
            assert _error(table, "m") is UnavailableError
        assert "cannot be read" in caplog.text
        caplog.clear()


async def test_a_change_is_known_once_every_reader_was_sent_it(control: Control) -> None:
    book = control.book
    assert book.wait_until_known(0.0)
    async with control.running(), control.watched() as (_, feed):
        await eventually(lambda: feed.connected)
        for number in range(1, 20):
            book.set(route(number, generation=number))
            assert await asyncio.to_thread(book.wait_until_known, 30.0)
    # A reader that takes nothing is not waited for longer than asked.
    reported = threading.Event()
    book.add(silent := Reader(reported.set))
    book.set(route(30, generation=30))
    assert reported.is_set()
    assert not book.wait_until_known(0.0)
    book.remove_reader(silent)
    assert await asyncio.to_thread(book.wait_until_known, 30.0)


async def test_watchers_end_when_the_service_stops(control: Control) -> None:
    control.book.set(route(1))
    async with control.running(), control.watched() as (table, feed):
        await eventually(lambda: number_of(table) == 1)
        control.stopping.set()
        await eventually(lambda: not feed.connected)
        assert number_of(table) == 1


def test_what_goes_over_the_wire_comes_back() -> None:
    task, users = Task.TEXT_CLASSIFICATION, ((0, 10), (20, SLOTS))
    versions = (
        RoutedVersion("m", 3, task, "int8", ("a", "b"), "", Role.SERVING, 70, users, 4),
        RoutedVersion("m", 4, task, "int4", ("a", "b"), "", Role.CANARY, 30, ((10, 20),), 1, load_s=12.5),
        RoutedVersion("m", 5, Task.GENERATION, "int4", (), "Write: {text}", Role.SHADOW),
        RoutedVersion("m", 6, task, "int4", (), "", Role.CANDIDATE),
    )
    whole = Route("m", NOW, versions, {"stable": 3}, None, "7", NOW)
    for each in (whole, replace(whole, versions=versions[1:], withdrawn=Withdrawal("why", "REASON", {"k": "v"}))):
        assert route_from(route_to(each)) == each


def test_a_route_of_a_release_with_one_version_is_understood() -> None:
    old = route_pb2.Route(model="models/m", serving="models/m/versions/2", generation=5)
    for number in (1, 2):
        old.versions.add(name=f"models/m/versions/{number}", task="text_classification", labels=["a"])
    (only,) = route_from(old).versions
    assert (only.number, only.role, only.users, only.generation) == (2, Role.SERVING, ((0, SLOTS),), 5)


async def test_a_death_is_reported_once_the_control_plane_answers(control: Control) -> None:
    async with grpc.aio.insecure_channel(
        control.address, [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
    ) as channel:
        table = RoutingTable()
        table.replace([route(7, generation=3), route(1, "n")])
        reports = DeathReports(control.stub(channel), table)
        running = asyncio.create_task(reports.run())
        try:
            for _ in range(5):
                reports.report("m.7", 3)
            reports.report("n.1", 1)
            reports.report("m.7", 2)  # of the process before
            await asyncio.sleep(0)
            table.change([route(1, "n", generation=2)])  # it was loaded again meanwhile
            async with control.running():
                await eventually(lambda: bool(control.failures.seen))
                reports.report("m.7", 3)  # known already
                reports.report("n.1", 2)
                await eventually(lambda: len(control.failures.seen) == 2)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert control.failures.seen == [("m", 7, 3), ("n", 1, 2)]


async def test_callers_are_asked_to_come_back_after_what_the_last_load_took(control: Control) -> None:
    table = RoutingTable()
    loads = {"a": 25.0, "b": 300.0, "c": 0.0, "d": 25.0}
    table.replace(
        replace(route(1, name), versions=(replace(route(1, name).versions[0], load_s=load_s),))
        for name, load_s in loads.items()
    )
    async with grpc.aio.insecure_channel(control.address) as channel:
        reports = DeathReports(control.stub(channel), table)
        reports.report("a.1", 1)
        missed = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() > missed + 0.2)
        assert reports.back_s("a.1") <= 25 - 0.2
        # The load before says nothing of the next one.
        table.change([route(1, "a", generation=2)])
        assert [reports.back_s(f"{name}.1") for name in ("b", "c", "d", "gone")] == [30, 1, 25, 1]
        assert reports.back_s("a.1") == 1


async def test_the_report_is_a_call_of_the_contract(control: Control) -> None:
    async with control.running(), grpc.aio.insecure_channel(control.address) as channel:
        stub = control.stub(channel)
        answer = await stub.ReportModelFailure(pb.ReportModelFailureRequest(model="models/m", generation=4))
        assert answer.accepted
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReportModelFailure(pb.ReportModelFailureRequest(model="m"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_control_plane_answers_nothing_and_says_who_does(control: Control) -> None:
    async with control.running(), grpc.aio.insecure_channel(control.address) as channel:
        stub = control.stub(channel)
        for call in (
            stub.Predict(pb.PredictRequest(model="models/m", texts=["a"])),
            stub.Generate(pb.GenerateRequest(model="models/m", text="a")),
            stub.StreamGenerate(pb.StreamGenerateRequest(model="models/m", text="a")).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "call the gateway" in str(caught.value.details())
