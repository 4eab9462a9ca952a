"""The configuration of a model as Triton reads it, `config.pbtxt`."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from services.inference.domain.model import ModelVersion, Task

# Larger batches gain nothing on a CPU, and a batch makes its first request wait for its last.
MAX_BATCH = 32
_STRING, _INT32, _INT64, _FP32 = pb.TYPE_STRING, pb.TYPE_INT32, pb.TYPE_INT64, pb.TYPE_FP32


def render_config(version: ModelVersion, otlp_endpoint: str | None, nonce: str) -> str:
    """The text of `config.pbtxt` that makes this version, and no other, the one that answers.

    Args:
        version: the version.
        otlp_endpoint: where the model's spans go, unless Triton's own environment says otherwise.
        nonce: makes the text another one: a load of an equal configuration leaves even a dead model as it is.
    """
    config = pb.ModelConfig(
        name=version.model,
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
    if version.build.task is Task.GENERATION:
        _generation(config)
    else:
        _classification(config, len(version.build.labels))
    return str(text_format.MessageToString(config))


def _generation(config: pb.ModelConfig) -> None:
    config.model_transaction_policy.decoupled = True
    for name, kind, size in (
        ("text", _STRING, 1),
        ("messages_json", _STRING, 1),
        ("max_tokens", _INT32, 1),
        ("temperature", _FP32, 1),
        ("top_p", _FP32, 1),
        ("seed", _INT64, 1),
        ("stop", _STRING, -1),
    ):
        config.input.add(name=name, data_type=kind, dims=[size], optional=True)
    for name, kind in (
        ("text_delta", _STRING),
        ("finish_reason", _STRING),
        ("prompt_tokens", _INT32),
        ("completion_tokens", _INT32),
    ):
        config.output.add(name=name, data_type=kind, dims=[1])


def _classification(config: pb.ModelConfig, labels: int) -> None:
    config.max_batch_size = MAX_BATCH
    # Batches form of what waits while the instance is busy; nobody waits for a batch to fill.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.response_cache.enable = True
    config.input.add(name="text", data_type=_STRING, dims=[1])
    config.output.add(name="label", data_type=_STRING, dims=[1])
    config.output.add(name="score", data_type=_FP32, dims=[1])
    config.output.add(name="scores", data_type=_FP32, dims=[labels])
    for size in (1, 8):
        warm_up = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        warm_up.inputs["text"].CopyFrom(pb.ModelWarmup.Input(data_type=_STRING, dims=[1], zero_data=True))
