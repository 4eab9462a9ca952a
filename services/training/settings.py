"""Settings of the training service; read by `__main__` only."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, field_validator

from services.kit.config import ServiceSettings, split_list


class TrainingSettings(ServiceSettings):
    """The shared fields and those of training."""

    models_dir: Path = Field(Path("models"), description="where base models are prepared")
    downloads_dir: Path = Field(Path("downloads"), description="where the downloaded files of base models are")
    model_roots: str = Field(
        "",
        description="folders, as absolute paths separated by commas, below which base models may lie, in addition to "
        "models_dir and what `tidemill run` allowed on this machine",
    )
    source_roots_file: str = Field(
        "", description="file that `tidemill run` adds folders to; set by the stack, none when empty"
    )
    mlflow_uri: str = Field("sqlite:///mlflow.db", description="MLflow's tracking and registry store")
    training_threads: int = Field(
        # The cores that this process may use, which in a container can be fewer than the machine has.
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        description="threads of a worker",
    )
    training_niceness: int = Field(
        10,
        ge=0,
        le=19,
        description="how far a worker stands back where the processor is busy, so that a training does not delay"
        " answers: 0 as all others, 19 takes only what they leave",
    )
    training_memory: int = Field(
        0, ge=0, description="bytes of memory that a run may take; those of the machine or its GPU when 0"
    )
    training_ray_address: str = Field(
        "",
        description="host:port of the head of a Ray cluster, on which trainings by ddp, fsdp and tp have their"
        " processes; they have them on this machine when empty",
    )
    training_ray_cpus: int = Field(
        1, ge=1, description="CPUs of the cluster that each of these processes takes, beside a GPU if it has some"
    )
    model_signing_key: Path = Field(
        Path("keys/models/signing.pem"), description="private key that signs builds; created at the first start"
    )
    trusted_model_keys: Path = Field(
        Path("keys/models/trusted"), description="folder of the public keys whose builds are trusted"
    )
    runs_dir: Path = Field(Path("runs"), description="work folder of runs whose results go to a remote artefact store")
    snapshot_cache: Path = Field(Path("snapshots"), description="where remote snapshots are copied to")

    @field_validator("model_roots")
    @classmethod
    def _absolute(cls, value: str) -> str:
        for root in split_list(value):
            if not Path(root).is_absolute():
                raise ValueError(f"{root} is not an absolute path")
        return value
