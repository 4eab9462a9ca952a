"""The configuration of a model as Triton reads it, `config.pbtxt`."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from services.inference.adapters.tasks import TASKS
from services.inference.domain.model import ModelVersion


def render_config(version: ModelVersion, otlp_endpoint: str | None, nonce: str) -> str:
    """The text of the version's `config.pbtxt`.

    Args:
        version: the version.
        otlp_endpoint: where the model's spans go, unless Triton's own environment says otherwise.
        nonce: makes the text another one: a load of an equal configuration leaves even a dead model as it is.
    """
    config = pb.ModelConfig(
        name=version.server_model,
        backend="python",
        version_policy=pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=[version.number])),
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)],
    )
    parameters = {
        "digest": version.lineage.digest,
        "run": version.lineage.run,
        "otlp_endpoint": otlp_endpoint or "",
        "nonce": nonce,
    }
    for name, value in parameters.items():
        if value:
            config.parameters[name].string_value = value
    TASKS[version.build.task].configure(config, version.build)
    return str(text_format.MessageToString(config))
