"""What is public at the gRPC door."""

from __future__ import annotations

import pytest

from gateway.facade.table import PublicService, public_services
from gateway.http.errors import STATUS_OF_CODE, code_of_status, openai_error
from gateway.peers import PEERS
from services.kit.errors import FieldViolation, InvalidArgumentError, TidemillError


def test_the_table_is_whole() -> None:
    services = public_services()
    assert {service.peer for service in services} == set(PEERS)
    paths = {f"{service.name}/{method.name}" for service in services for method in service.public_methods()}
    assert "tidemill.inference.v1.InferenceService/StreamGenerate" in paths
    assert "inference.GRPCInferenceService/ModelInfer" in paths


@pytest.mark.parametrize(
    "internal",
    [
        "tidemill.training.v1.TrainingService/CreateRun",
        "tidemill.training.v1.TrainingService/PromoteRun",
        "tidemill.inference.v1.InferenceService/PublishModel",
        "inference.GRPCInferenceService/RepositoryModelLoad",
        "inference.GRPCInferenceService/SystemSharedMemoryRegister",
    ],
)
def test_what_is_internal_is_not_public(internal: str) -> None:
    name, _, method = internal.partition("/")
    service = next(service for service in public_services() if service.name == name)
    assert method in {m.name for m in service.descriptor.methods}
    assert method not in {m.name for m in service.public_methods()}


def test_a_misspelt_method_is_found_at_the_start() -> None:
    service = public_services()[0]
    with pytest.raises(ValueError, match="Nonsense"):
        list(PublicService(service.peer, service.descriptor, frozenset({"Nonsense"})).public_methods())


def test_every_error_has_a_status() -> None:
    kinds = TidemillError.__subclasses__()
    assert kinds
    for kind in kinds:
        assert kind.code in STATUS_OF_CODE
    assert [code_of_status(status) for status in (200, 404, 418, 502)] == [
        "OK",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "INTERNAL",
    ]


def test_params_are_named_as_the_caller_wrote_them() -> None:
    error = InvalidArgumentError("m", violations=[FieldViolation("sampling.temperature", "d")])
    assert openai_error(error)["error"]["param"] == "temperature"
