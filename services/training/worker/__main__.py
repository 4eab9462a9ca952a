"""Composition root of the worker: `python -m services.training.worker --job RUN_FOLDER/job.json`.

Exits with 0 and report.json, with EXIT_CANCELLED after SIGTERM (a checkpoint is stored), or with EXIT_FAILED and
failure.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from opentelemetry import trace

from services.kit.config import ServiceSettings, load_settings
from services.kit.errors import explained
from services.kit.storage.temporary import temporary_files
from services.kit.telemetry import schema
from services.kit.telemetry.context import continued_trace
from services.kit.telemetry.sampling import Sampling
from services.kit.telemetry.setup import start_telemetry
from services.training.adapters.job import (
    EXIT_AT_WORK,
    EXIT_CANCELLED,
    EXIT_CLUSTER_LOST,
    EXIT_DISK_FULL,
    EXIT_FAILED,
    FAILURE_FILE,
    REPORT_FILE,
    STOPPED_FILE,
    Job,
    WorkerLock,
    write_json,
)
from services.training.engine.loop import Cancelled
from services.training.worker.priority import lower_priority
from services.training.worker.ranks import ClusterLostError, Ranks, failure_of

logger = logging.getLogger("services.training.worker")

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""Never contact the Hugging Face hub: all files are local, and a missing one must fail at once. No progress bars."""


def main() -> None:
    """Runs one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="job.json of the run")
    sys.exit(work_on(parser.parse_args().job))


def work_on(path: Path) -> int:
    """Runs the job in a file, unless another process does.

    Returns:
        The exit code.
    """
    job = Job.read(path)
    try:
        with WorkerLock(job.folder) as lock:
            return _work(job) if lock.held else EXIT_AT_WORK
    except OSError as error:
        known = explained(error)
        if known is None or known.reason != "DISK_FULL":
            raise
        return EXIT_DISK_FULL


def _work(job: Job) -> int:
    from services.training.worker.sequence import run_rank

    lower_priority(job.niceness)
    os.environ.update(OFFLINE)
    # Before this process has threads.
    ranks = Ranks(job, run_rank)
    settings = load_settings(ServiceSettings)
    sampling = Sampling(settings.traces_per_s, settings.slow_trace_s)
    telemetry = start_telemetry(
        "training-worker", settings.otlp_endpoint, peer_files=settings.peer_files, sampling=sampling
    )
    # Their messages are not needed (which layers were compressed, how ROUGE splits words); errors are exceptions.
    for name in ("nncf", "absl"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    tracer, traceparent = trace.get_tracer(__name__), os.environ.get("TRACEPARENT", "")
    try:
        with (
            temporary_files(settings.state, "training-worker"),
            continued_trace(traceparent),
            tracer.start_as_current_span("training run", attributes={schema.RUN: job.run}),
            ranks.watch(telemetry.shutdown),
        ):
            return _run(job, stop, ranks)
    finally:
        telemetry.shutdown()


def _run(job: Job, stop: threading.Event, ranks: Ranks) -> int:
    import torch

    from services.training.worker.phases import drop_stored, fetch_checkpoint, store, with_loss_curve
    from services.training.worker.sequence import run_job

    torch.set_num_threads(job.threads)
    try:
        fetch_checkpoint(job, stop)
        report = store(job, with_loss_curve(job, run_job(job, stop.is_set, ranks)), stop)
        write_json(job.folder / REPORT_FILE, report.to_json())
    except Cancelled:
        logger.info("run %s was stopped; its checkpoint is stored", job.run)
        # If the service was restarted, it is not the parent of this process and does not see its exit code.
        (job.folder / STOPPED_FILE).touch()
        return EXIT_CANCELLED
    except ClusterLostError as error:
        # As after a kill of this process, the service starts it again, and it resumes from the checkpoint.
        logger.error("run %s: %s", job.run, error)
        return EXIT_CLUSTER_LOST
    except Exception as error:
        # An exception would occur again, so there is no other attempt, unlike after a kill of this process.
        if explained(error) is None:
            logger.exception("run %s failed", job.run)
        failure = failure_of(error)
        logger.error("run %s failed: %s: %s", job.run, failure["reason"], failure["message"])
        try:
            write_json(job.folder / FAILURE_FILE, failure)
        except OSError:
            return EXIT_DISK_FULL if failure["reason"] == "DISK_FULL" else EXIT_FAILED
        return EXIT_FAILED
    drop_stored(job)
    return 0


if __name__ == "__main__":
    main()
