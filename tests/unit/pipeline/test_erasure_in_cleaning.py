"""From `tidemill erase` to cleaning's files: both services' own code, over gRPC."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlparse

import pyarrow.parquet as pq
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import add_CleaningServiceServicer_to_server

from services.cleaning.app.ports import Arrival
from services.cleaning.domain.dataset import DatasetSpec
from services.cleaning.domain.record import RawRecord
from services.cleaning.entrypoints.pool import WorkPool
from services.cleaning.entrypoints.servicer import CleaningServicer
from services.kit.grpc.client import open_channel
from services.kit.grpc.server import create_server, finish_server
from services.kit.storage.artifacts import local_path
from services.kit.telemetry.metrics import RequestMetrics
from services.pipeline.adapters.peers import DatasetVersions
from tests.conftest import OpenDatabase
from tests.grpc_servers import serving
from tests.unit.cleaning.test_use_cases import Harness as Cleaning
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.test_exclusions import TENANT, Office


def texts_of(cleaning: Cleaning, name: str) -> set[tuple[str, str]]:
    """Prompt and right text of what a data-set version teaches."""
    snapshot = cleaning.datasets.version(name).snapshot
    assert snapshot is not None
    folder = local_path(snapshot.uri)
    assert folder is not None
    parts = [pq.read_table(folder / f"{part}.parquet").to_pylist() for part in ("train", "holdout", "corrections")]
    return {(row["text"], row["headline"]) for rows in parts for row in rows}


def taught(uri: str, source: str) -> list[Arrival]:
    """What an import of the lessons brings to cleaning."""
    found = []
    for arrival, text in enumerate(Path(urlparse(uri).path).read_text().splitlines(), 1):
        line = json.loads(text)
        values = {name: value for name, value in line.items() if name not in ("record_id", "text")}
        found.append(Arrival(RawRecord(line["record_id"], source, line["text"], values, arrival=arrival)))
    return found


async def test_erasing_a_person_reaches_the_data_sets_of_cleaning(
    harness: Harness, open_service_database: OpenDatabase, tmp_path: Path
) -> None:
    office, cleaning = Office(harness), Cleaning(open_service_database("cleaning"), tmp_path / "artifacts")
    training = {**office.spec.training, "generation": {"target_field": "headline"}}
    office.spec = replace(office.spec, training=training)
    source = office.spec.feedback_source
    cleaning.datasets.put(
        "datasets/d", DatasetSpec((source,), (), required_attributes=("headline",), feedback_sources=(source,))
    )
    office.correct("a", "dora", text="of dora")
    office.correct("b", "ben", text="of ben")
    # Ben corrected what dora had asked and judged, so it is hers.
    office.correct("both", "ben", text="of ben about hers")
    office.desk.feedback.record([replace(office.judgement("both", "dora"), comment="I asked that")])
    await office.cycle()
    cleaning.records.collect(taught(str(harness.captures.write_lessons(office.spec)["uri"]), source))
    version = cleaning.datasets.build_version("datasets/d", [], "", "")[0].name
    cleaning.work()
    assert {text for _, text in texts_of(cleaning, version)} == {"of dora", "of ben", "of ben about hers"}

    office.desk.clock.time += timedelta(minutes=1)
    office.exclusions.erase("dora", TENANT, "")
    server, pool = create_server(RequestMetrics("cleaning"), traced=False), WorkPool()
    cases = (cleaning.records, cleaning.datasets, cleaning.explanations, cleaning.erasures, cleaning.cards)
    servicer = CleaningServicer(*cases, pool)
    add_CleaningServiceServicer_to_server(servicer, server)
    finish_server(server, ["tidemill.cleaning.v1.CleaningService"])
    async with serving(server) as port:
        channel = open_channel(f"127.0.0.1:{port}")
        await office.exclusions.carry_out(DatasetVersions(channel))
        await channel.close()
    pool.close()
    assert {text for _, text in texts_of(cleaning, version)} == {"of ben"}
    (view,) = office.exclusions.page("", 10)
    assert view.exclusion.rewritten == (version,)
