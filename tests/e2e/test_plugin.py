"""The example plugin in a folder of `TIDEMILL_PLUGINS`: its source is pulled and its operator cleans."""

from __future__ import annotations

import mailbox
from email.message import EmailMessage

from google.protobuf.json_format import ParseDict
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1.cleaning_events_pb2 import RecordCleaned
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.source_import_pb2 import Import

from services.kit.bus.topics import RECORDS_CLEAN
from tests.e2e.conftest import Mesh
from tests.e2e.test_events import cleaned_event, new_consumer
from tests.waiting import wait_for, wait_until

COUNT = 20


def test_its_source_is_pulled_and_its_operator_cleans(mesh: Mesh) -> None:
    path = mesh.scratch / "support.mbox"
    box = mailbox.mbox(path)
    for number in range(COUNT):
        mail = EmailMessage()
        mail["Subject"] = f"Mail {number}"
        mail.set_content(f"The answer to TICKET-{number} concerns the customer number {number} only.")
        box.add(mail)
    box.flush()
    path.chmod(0o644)
    source = {"source": "plugin-mails", "plugin": {"name": "mbox", "config": {"path": str(path)}}}
    recipe = {
        "sources": ["plugin-mails"],
        "operators": [{"name": "mask_tickets"}, {"name": "normalize_whitespace"}],
        "holdout": {"fraction": 0.2},
    }
    with mesh.channel() as channel:
        cleaning, ingest = CleaningServiceStub(channel), IngestServiceStub(channel)
        put = ParseDict({"name": "datasets/plugin", "spec": recipe}, cleaning_pb.PutDatasetRequest())
        cleaning.PutDataset(put, metadata=mesh.metadata, timeout=30)
        create = ParseDict({"request_id": "plugin", "spec": source}, ingest_pb.CreateImportRequest())
        name = ingest.CreateImport(create, metadata=mesh.metadata, timeout=30).source_import.name

        def pulling() -> Import:
            request = ingest_pb.GetImportRequest(name=name)
            return ingest.GetImport(request, metadata=mesh.metadata, timeout=10).source_import

        pulled = wait_for(pulling, lambda found: found.state != Import.STATE_RUNNING)
        assert (pulled.state, pulled.record_count, pulled.rejected_count) == (Import.STATE_SUCCEEDED, COUNT, 0)
        build = cleaning_pb.BuildDatasetVersionRequest(request_id="plugin", dataset="datasets/plugin")
        build.awaited_imports.add(name=name, record_count=COUNT)
        version = cleaning.BuildDatasetVersion(build, metadata=mesh.metadata, timeout=30).dataset_version.name

        def building() -> DatasetVersion:
            request = cleaning_pb.GetDatasetVersionRequest(name=version)
            return cleaning.GetDatasetVersion(request, metadata=mesh.metadata, timeout=10).dataset_version

        made = wait_for(building, lambda found: found.state != DatasetVersion.STATE_BUILDING)
    assert made.state == DatasetVersion.STATE_READY, made
    assert made.train_count + made.holdout_count == COUNT
    consumer = new_consumer(mesh, RECORDS_CLEAN.name)
    event: RecordCleaned = wait_until(lambda: cleaned_event(consumer, "customer number 7 only"))
    consumer.close()
    assert event.text == "The answer to [TICKET] concerns the customer number 7 only."
    assert event.attributes["subject"] == "Mail 7"
