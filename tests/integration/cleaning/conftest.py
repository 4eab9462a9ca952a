"""The cleaning service as a process of its own on a real Kafka, and what its tests ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as stubs

from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from tests.service_process import ServiceProcess


@pytest.fixture(scope="package")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with all topics."""
    with running_parts({"kafka"}, tmp_path_factory.mktemp("stack")) as stack:
        ensure_topics(stack.kafka_bootstrap)
        yield stack.kafka_bootstrap


class CleaningProcess(ServiceProcess):
    """A process of cleaning."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        # As the stack places it.
        key = folder / "pseudonyms"
        key.write_text("5a" * 32, encoding="utf-8")
        settings = {
            "TIDEMILL_PSEUDONYM_KEY_FILE": str(key),
            "TIDEMILL_KAFKA_BOOTSTRAP": bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/cleaning.sqlite",
            "TIDEMILL_ARTIFACTS_URL": f"file://{folder}/artifacts",
            "TIDEMILL_DATA_DIR": f"{folder}/data",
            "TIDEMILL_AWAIT_TIMEOUT_S": "60",
            "TIDEMILL_LOST_PATIENCE_S": "8",
        }
        super().__init__("cleaning", folder, settings)

    def stub(self) -> stubs.CleaningServiceStub:
        return stubs.CleaningServiceStub(self.channel())


@pytest.fixture(scope="package")
def cleaning(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleaningProcess]:
    process = CleaningProcess(kafka_bootstrap, tmp_path_factory.mktemp("cleaning"))
    process.start()
    yield process
    process.kill()
