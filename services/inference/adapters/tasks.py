"""What serving needs to know about each task, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as pb

from services.inference.domain.model import Build
from services.kit.engine import ENCODER, LANGUAGE_MODEL, TOKENIZERS, weights_of
from services.serving.adapters.triton_tensors import BACKGROUND_PRIORITY, MAX_BATCH, TOKEN_COUNTS
from services.serving.domain.answer import Task

_STRING, _INT32, _INT64, _FP32 = pb.TYPE_STRING, pb.TYPE_INT32, pb.TYPE_INT64, pb.TYPE_FP32


@dataclass(frozen=True, slots=True)
class TaskSupport:
    """How builds of a task are served."""

    files: tuple[str, ...]
    """Files that they must contain, besides the manifest."""
    module: str
    """Module of `services.inference.triton_models` that runs them."""
    configure: Callable[[pb.ModelConfig, Build], None]
    """Adds inputs, outputs and batching to Triton's configuration."""
    optional_files: tuple[str, ...] = ()
    """Graphs, and the weights of graphs, that they may contain."""
    min_labels: int = 0
    """How many labels their manifest must name at least."""
    embeds: bool = False
    """Whether their manifest must name the width of their embeddings, which is all that they give."""


def _generation(config: pb.ModelConfig, _: Build) -> None:
    config.model_transaction_policy.decoupled = True
    for name, kind, size in (
        ("text", _STRING, 1),
        ("messages_json", _STRING, 1),
        ("max_tokens", _INT32, 1),
        ("temperature", _FP32, 1),
        ("top_p", _FP32, 1),
        ("seed", _INT64, 1),
        ("stop", _STRING, -1),
        ("top_k", _INT32, 1),
        ("frequency_penalty", _FP32, 1),
        ("presence_penalty", _FP32, 1),
        ("repetition_penalty", _FP32, 1),
        ("json_schema", _STRING, 1),
        ("logprobs", pb.TYPE_BOOL, 1),
        ("tools_json", _STRING, 1),
        ("tool_choice", _STRING, 1),
    ):
        config.input.add(name=name, data_type=kind, dims=[size], optional=True)
    for name, kind, size in (
        ("text_delta", _STRING, 1),
        ("finish_reason", _STRING, 1),
        ("prompt_tokens", _INT32, 1),
        ("truncated_tokens", _INT32, 1),
        ("completion_tokens", _INT32, 1),
        ("tokens", _STRING, -1),
        ("logprobs", _FP32, -1),
    ):
        config.output.add(name=name, data_type=kind, dims=[size])


def _classification(config: pb.ModelConfig, build: Build) -> None:
    config.output.add(name="label", data_type=_STRING, dims=[1])
    config.output.add(name="score", data_type=_FP32, dims=[1])
    config.output.add(name="scores", data_type=_FP32, dims=[len(build.labels)])
    _encoder(config, build)


def _multi_label_classification(config: pb.ModelConfig, build: Build) -> None:
    config.output.add(name="labels_json", data_type=_STRING, dims=[1])
    config.output.add(name="scores", data_type=_FP32, dims=[len(build.labels)])
    _encoder(config, build)


def _token_classification(config: pb.ModelConfig, build: Build) -> None:
    config.output.add(name="spans_json", data_type=_STRING, dims=[1])
    _encoder(config, build)


def _encoder(config: pb.ModelConfig, build: Build) -> None:
    config.max_batch_size = MAX_BATCH
    # Batches form from requests that wait while the instance is busy; no request waits for a batch to fill.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    # What no one waits for starts when nothing else waits.
    config.dynamic_batching.priority_levels = BACKGROUND_PRIORITY
    config.dynamic_batching.default_priority_level = 1
    config.input.add(name="text", data_type=_STRING, dims=[1])
    for name in TOKEN_COUNTS:
        config.output.add(name=name, data_type=_INT32, dims=[1])
    if build.embedding_size:
        config.output.add(name="embedding", data_type=_FP32, dims=[build.embedding_size])
    for size in (1, 8):
        warm_up = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        warm_up.inputs["text"].CopyFrom(pb.ModelWarmup.Input(data_type=_STRING, dims=[1], zero_data=True))


TASKS: Mapping[Task, TaskSupport] = {
    Task.GENERATION: TaskSupport(
        files=(LANGUAGE_MODEL, weights_of(LANGUAGE_MODEL), "config.json", "tokenizer.json", "tokenizer_config.json"),
        module="generation",
        configure=_generation,
        optional_files=(*TOKENIZERS, *map(weights_of, TOKENIZERS)),
    ),
    Task.TEXT_CLASSIFICATION: TaskSupport(
        files=(ENCODER, weights_of(ENCODER), "tokenizer.json"),
        module="classification",
        configure=_classification,
        min_labels=2,
    ),
    Task.MULTI_LABEL_CLASSIFICATION: TaskSupport(
        files=(ENCODER, weights_of(ENCODER), "tokenizer.json"),
        module="multi_label_classification",
        configure=_multi_label_classification,
        min_labels=1,
    ),
    Task.TOKEN_CLASSIFICATION: TaskSupport(
        files=(ENCODER, weights_of(ENCODER), "tokenizer.json"),
        module="token_classification",
        configure=_token_classification,
        min_labels=3,
    ),
    Task.TEXT_EMBEDDING: TaskSupport(
        files=(ENCODER, weights_of(ENCODER), "tokenizer.json"),
        module="text_embedding",
        configure=_encoder,
        embeds=True,
    ),
}
