"""A crawl during which ingest is killed: on the running service, each page is fetched once and is one record."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.source_import_pb2 import Import, SourceSpec, WebPagesSource

from services.kit.bus.topics import RECORDS_RAW
from tests.integration.ingest.conftest import IngestProcess, messages_of
from tests.site import Site, page

pytestmark = pytest.mark.real


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_a_crawl_goes_on_after_a_kill(ingest: IngestProcess, kafka_bootstrap: str, site: Site) -> None:
    names = [f"/{number}" for number in range(40)]
    site.put("/", page("home", *names))
    for name in names:
        site.put(name, page(name))
    reached, killed = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if path == "/20" and not killed.is_set():
            reached.set()
            killed.wait(60)

    site.before = hold
    spec = SourceSpec(source="crawled", web_pages=WebPagesSource(uri=site.url(), delay_s=0.001))
    begun = ingest.stub().CreateImport(pb.CreateImportRequest(spec=spec), timeout=60).source_import
    assert reached.wait(60)
    ingest.kill()
    killed.set()
    ingest.start()
    *_, last = ingest.stub().WatchImport(pb.WatchImportRequest(name=begun.name), timeout=90)
    done = last.source_import
    assert (done.state, done.record_count, done.rejected_count) == (Import.STATE_SUCCEEDED, 41, 0), done
    # Only the page that was being fetched was asked for twice.
    assert sorted(site.paths()) == sorted(["/", *names, "/20"])
    found = [message.record for _, message in messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, begun.name)]
    assert {record.record_id for record in found} == {site.url(path) for path in ["/", *names]}
    assert {record.record_id: record.text.partition("\n")[0] for record in found}[site.url("/7")] == "/7"
