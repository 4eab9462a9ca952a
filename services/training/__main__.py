"""Composition root of the training service: `python -m services.training`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
from tidemill.training.v1 import training_service_pb2_grpc as grpc_stubs

from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.clock import SystemClock
from services.kit.config import load_settings, split_list
from services.kit.grpc.request_ids import RequestIdInterceptor
from services.kit.runtime.service import Service, run_service
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.database import open_database
from services.kit.storage.requests import SqlRequestLog
from services.kit.storage.signing import SigningKey, TrustedKeys
from services.kit.telemetry.metrics import RequestMetrics
from services.training.adapters.announcer import BusAnnouncer
from services.training.adapters.base_models import BaseModels
from services.training.adapters.calibration import MeasuredMachine
from services.training.adapters.cluster import RayCluster
from services.training.adapters.job import Cluster
from services.training.adapters.launching import launcher
from services.training.adapters.machine import LocalMachine
from services.training.adapters.model_roots import ModelRoots
from services.training.adapters.registry import MlflowRegistry
from services.training.adapters.run_store import SqlRunStore
from services.training.adapters.snapshots import StoredFolders
from services.training.adapters.worker_processes import WorkerProcesses
from services.training.app.advising import Advising
from services.training.app.runs import Runs
from services.training.app.supervision import Supervision
from services.training.entrypoints.servicer import TrainingServicer
from services.training.entrypoints.worker import run_supervision
from services.training.settings import TrainingSettings

MIGRATIONS = Path(__file__).parent / "adapters" / "migrations"


async def build(settings: TrainingSettings) -> Service:
    """Builds the service."""
    await asyncio.to_thread(ensure_topics, settings.brokers)
    engine = await asyncio.to_thread(open_database, settings.database_url, MIGRATIONS, schema="training")
    publisher = await asyncio.to_thread(KafkaEventPublisher, settings.brokers, "training")
    clock, store, artifacts = SystemClock(), SqlRunStore(engine), ArtifactStore(settings.artifacts_url)
    registry = MlflowRegistry(settings.mlflow_uri, artifacts.uri("mlflow"))
    key = SigningKey(settings.model_signing_key.absolute(), settings.trusted_model_keys.absolute())
    await asyncio.to_thread(key.ensure)
    models_dir, downloads_dir = settings.models_dir.absolute(), settings.downloads_dir.absolute()
    added = [Path(root) for root in split_list(settings.model_roots)]
    allowed = Path(settings.source_roots_file) if settings.source_roots_file else None
    starter = launcher()
    address = settings.training_ray_address
    cluster = Cluster(address, settings.training_ray_cpus) if address else None
    workers = WorkerProcesses(
        artifacts,
        settings.snapshot_cache.absolute(),
        settings.runs_dir.absolute(),
        models_dir,
        downloads_dir,
        settings.training_threads,
        key,
        starter,
        settings.training_niceness,
        cluster,
    )
    supervision = Supervision(store, workers, registry, BusAnnouncer(publisher), clock)
    models = BaseModels(models_dir, downloads_dir, ModelRoots([models_dir, *added], allowed))
    machine = LocalMachine(settings.training_memory)
    runs = Runs(
        store,
        models,
        StoredFolders(artifacts, TrustedKeys(key.trusted), settings.snapshot_cache.absolute()),
        registry,
        machine,
        clock,
        lambda run_id: artifacts.uri("runs", run_id),
        None if cluster is None else RayCluster(cluster, settings.training_memory),
    )

    advising = Advising(models, store, machine, MeasuredMachine(models_dir / ".speed"))

    def register(server: grpc.aio.Server) -> Sequence[str]:
        grpc_stubs.add_TrainingServiceServicer_to_server(TrainingServicer(runs, advising), server)
        return ["tidemill.training.v1.TrainingService"]

    return Service(
        register=register,
        tasks=[lambda: run_supervision(supervision)],
        stopping=[publisher.finish],
        requests=RequestIdInterceptor(SqlRequestLog(engine, clock)),
        closers=[supervision.pause, starter.close, publisher.close, engine.dispose],
    )


def main() -> None:
    """Runs the service until it is stopped."""
    settings = load_settings(TrainingSettings)

    async def start(_: RequestMetrics) -> Service:
        return await build(settings)

    run_service("training", settings, start)


if __name__ == "__main__":
    main()
