"""Settings of the inference service; read by `__main__` only."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.kit.config import ServiceSettings


class InferenceSettings(ServiceSettings):
    """The shared fields and those of inference."""

    triton_grpc: str = Field("127.0.0.1:8001", description="host:port of Triton's gRPC")
    triton_repository: Path = Field(
        Path("triton/models"), description="model repository that Triton serves from, in explicit mode"
    )
    triton_staging: Path | None = Field(
        None, description="folder on the repository's file system, outside it; beside it when unset"
    )
    trusted_model_keys: Path = Field(
        Path("keys/models/trusted"), description="folder of the public keys whose builds may be served"
    )
    artifact_cache: Path | None = Field(
        None, description="where remote builds are copied to; next to the repository when unset"
    )
    load_timeout_s: float = Field(180.0, gt=0, description="longest time that Triton may take to load a version")
    keep_versions: int = Field(
        3, ge=2, description="versions of a model whose files stay in the repository, the serving one among them"
    )
    drain_s: float = Field(5.0, ge=0, description="seconds that a version stays loaded after it left its model's route")
    reconcile_pause_s: float = Field(2.0, gt=0, description="seconds between two looks at what Triton serves")
    otlp_endpoint_of_models: str | None = Field(
        None, description="OTLP/gRPC endpoint as Triton reaches it; the service's own when unset"
    )

    @property
    def staging(self) -> Path:
        """Where versions are put together."""
        return self.triton_staging or self.triton_repository.with_name(f"{self.triton_repository.name}.staging")

    @property
    def cache(self) -> Path:
        """Where remote builds are copied to."""
        return self.artifact_cache or self.triton_repository.with_name(f"{self.triton_repository.name}.builds")
