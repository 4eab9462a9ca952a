"""The metrics of several processes of a service: one of them answers for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as families_of_text

from services.kit.telemetry.process_metrics import LABEL, ProcessMetrics
from services.kit.telemetry.scraping import serve_metrics
from tests.service_process import free_port
from tests.waiting import eventually

PROCESSES = 3


def metrics_of(folder: Path, process: int) -> ProcessMetrics:
    """Of a process that has cleaned as many records as its number says."""
    registry = CollectorRegistry()
    Counter("records", "Records cleaned", ("verdict",), registry=registry).labels("kept").inc(process)
    Histogram("seconds", "Of a batch", buckets=(1, 10), registry=registry).observe(process)
    return ProcessMetrics(registry, "cleaning", folder, process, PROCESSES)


@contextlib.asynccontextmanager
async def serving(folder: Path, processes: Sequence[int]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(metrics_of(folder, process).serve()) for process in processes]
    await eventually(lambda: len(list(folder.iterdir())) == len(tasks) or None, "their sockets")
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def read(address: str, accept: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{address}/metrics", headers={"Accept": accept})


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Where the first process is scraped."""
    place = f"127.0.0.1:{free_port()}"
    serve_metrics(place, metrics_of(tmp_path, 1).registry, None)
    return place


async def test_the_first_process_answers_for_those_that_run(tmp_path: Path, address: str) -> None:
    async with serving(tmp_path, [3]):
        found = (await read(address, "text/plain")).text
    (records,) = [family for family in families_of_text(found) if family.name == "records"]
    assert {sample.labels[LABEL]: sample.value for sample in records.samples} == {"1": 1, "3": 3}
    # One that has ended has no socket, which is not an error.
    assert f'{LABEL}="3"' not in (await read(address, "text/plain")).text


async def test_openmetrics_is_answered_where_it_is_asked_for(tmp_path: Path, address: str) -> None:
    async with serving(tmp_path, [2, 3]):
        response = await read(address, "application/openmetrics-text; version=1.0.0")
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.headers["content-encoding"] == "gzip"
    found = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert (found["records"].type, found["seconds"].type) == ("counter", "histogram")
    totals = {s.labels[LABEL]: s.value for s in found["records"].samples if s.name == "records_total"}
    assert totals == {"1": 1, "2": 2, "3": 3}
    # When a counter began stays with it, so that a process that starts again is not seen as one that went back.
    assert len([sample for sample in found["records"].samples if sample.name == "records_created"]) == PROCESSES


async def test_an_answer_that_is_cut_off_is_left_out(
    tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'# TYPE records counter\nrecords_total{verdict="ke')
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "cleaning-2.metrics"):
        found = (await read(address, "text/plain")).text
    assert f'{LABEL}="1"' in found
    assert f'{LABEL}="2"' not in found
    assert "the metrics of cleaning process 2 are missing" in caplog.text


def test_one_process_alone_has_its_own_registry(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    alone = ProcessMetrics(registry, "cleaning", tmp_path, 1, 1)
    assert alone.registry is registry
    assert LABEL not in generate_latest(alone.registry).decode()
