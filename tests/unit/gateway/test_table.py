"""What is public at the gRPC door."""

from __future__ import annotations

import pytest

from gateway.facade.table import OWN, PublicService, public_services
from gateway.peers import PEERS


def test_the_table_is_whole() -> None:
    services = public_services()
    assert {service.peer for service in services} == {*PEERS, OWN}
    paths = {f"{service.name}/{method.name}" for service in services for method in service.public_methods()}
    assert "tidemill.inference.v1.InferenceService/StreamGenerate" in paths
    assert "inference.GRPCInferenceService/ModelInfer" in paths


@pytest.mark.parametrize(
    "internal",
    [
        "tidemill.training.v1.TrainingService/CreateRun",
        "tidemill.training.v1.TrainingService/PromoteRun",
        "tidemill.inference.v1.InferenceService/PublishModel",
        "tidemill.inference.v1.InferenceService/WatchRoutes",
        "tidemill.inference.v1.InferenceService/ReportModelFailure",
        "tidemill.pipeline.v1.PipelineService/WatchCapture",
        "inference.GRPCInferenceService/RepositoryModelLoad",
        "inference.GRPCInferenceService/SystemSharedMemoryRegister",
    ],
)
def test_what_is_internal_is_not_public(internal: str) -> None:
    name, _, method = internal.partition("/")
    rows = [service for service in public_services() if service.name == name]
    assert rows
    for service in rows:
        assert method in {m.name for m in service.descriptor.methods}
        assert method not in {m.name for m in service.public_methods()}


def test_a_misspelt_method_is_found_at_the_start() -> None:
    service = public_services()[0]
    with pytest.raises(ValueError, match="Nonsense"):
        list(PublicService(service.peer, service.descriptor, frozenset({"Nonsense"})).public_methods())
