"""What is refused when a run is created, and the field that it names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tidemill.training.v1 import run_pb2

from services.kit.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TidemillError,
)
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.signing import TrustedKeys
from services.training.adapters.base_models import BaseModels
from services.training.adapters.snapshots import StoredFolders
from services.training.domain.strategies import SPLIT_FAMILIES
from services.training.domain.tasks import GenerationTask, Task, TextClassificationTask
from services.training.domain.training_spec import BaseModel, Optimization, TrainingSpec
from services.training.engine.methods import make_method, stored_method
from services.training.engine.methods.dpo import Dpo
from services.training.engine.methods.kto import Kto
from services.training.engine.methods.lora import Lora
from services.training.entrypoints.mapping import spec_from, spec_to

_ROW = {"record_id": "r", "text": "the room was good", "label": "good", "headline": "good room"}
_WRITER, _LABELLER = GenerationTask("Write.\n\n{text}", "headline", 96, 12), TextClassificationTask("label", 32)


def spec(task: Task, **changes: Any) -> TrainingSpec:
    made = TrainingSpec("m", "base", "datasets/d/versions/1", "", "0" * 64, task, Lora(), Optimization(max_steps=2))
    return replace(made, **changes)


def fields(error: TidemillError) -> list[str]:
    return [violation.field for violation in error.violations]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{headline}: {text}", r"contains \{headline\}"),
        ("{topic} {text} {a}", r"\{a\}, \{topic\}"),
        ("{ text }", "contain"),
    ],
)
def test_a_template_that_serving_cannot_fill_is_refused(template: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why) as refused:
        spec(replace(_WRITER, prompt_template=template))
    assert fields(refused.value) == ["spec.generation.prompt_template"]


def test_other_braces_of_a_template_stay() -> None:
    writer = replace(_WRITER, prompt_template='{"task": "headline"} {text}')
    assert spec(writer).task == writer


def folder_of(tmp_path: Path, config: object, weights: str = "model.safetensors") -> str:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (tmp_path / weights).write_bytes(b"")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("config", "task", "field", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, _LABELLER, "spec.base_model", "needs an encoder"),
        ({"architectures": ["BertModel"]}, _WRITER, "spec.base_model", "needs a causal model"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            _WRITER,
            "spec.base_model",
            "neither",
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 100},
            _WRITER,
            "spec.generation.max_input_tokens",
            "100 tokens",
        ),
        (
            {"architectures": ["BertModel"], "max_position_embeddings": 16},
            _LABELLER,
            "spec.text_classification.max_input_tokens",
            "16 tokens",
        ),
    ],
)
def test_a_base_model_that_cannot_learn_the_task_is_refused(
    tmp_path: Path, config: object, task: Task, field: str, said: str
) -> None:
    base = BaseModels(tmp_path, tmp_path).find(folder_of(tmp_path, config))
    with pytest.raises(InvalidArgumentError, match=said) as refused:
        spec(task).check_base(base)
    assert fields(refused.value) == [field]


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ({"architectures": ["BertModel"]}, "pytorch_model.bin", "no .*safetensors"),
        ("{", "model.safetensors", "cannot be read"),
        ("[]", "model.safetensors", "cannot be read"),
    ],
)
def test_a_base_model_that_is_not_to_be_loaded_is_refused(
    tmp_path: Path, config: object, weights: str, said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as refused:
        BaseModels(tmp_path, tmp_path).find(folder_of(tmp_path, config, weights))
    assert fields(refused.value) == ["spec.base_model"]


def snapshot(folder: Path, **parts: list[dict[str, str]]) -> str:
    folder.mkdir()
    for part, rows in parts.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return folder.as_uri()


@pytest.mark.parametrize(
    ("parts", "kind", "reason", "said"),
    [
        ({"train": [_ROW]}, DataLossError, "SNAPSHOT_DAMAGED", "holdout.parquet: it is missing"),
        ({"train": [_ROW], "holdout": []}, FailedPreconditionError, "DATASET_EMPTY", "holdout part .* is empty"),
        (
            {"train": [{"text": "x", "stars": "5"}], "holdout": [_ROW]},
            InvalidArgumentError,
            "COLUMN_MISSING",
            r"spec\.generation\.target_field: .*stars",
        ),
    ],
)
def test_a_data_set_that_cannot_be_learnt_from_is_refused(
    tmp_path: Path, parts: dict[str, list[dict[str, str]]], kind: type[TidemillError], reason: str, said: str
) -> None:
    uri = snapshot(tmp_path / "d", **parts)
    with pytest.raises(kind, match=said) as refused:
        StoredFolders(ArtifactStore(tmp_path.as_uri()), TrustedKeys(tmp_path), tmp_path).check_dataset(
            spec(_WRITER, dataset_uri=uri)
        )
    assert refused.value.reason == reason


def test_a_hold_out_that_cannot_be_sliced_as_named_is_refused(tmp_path: Path) -> None:
    # Only the hold-out is sliced, and by length without a column.
    uri = snapshot(tmp_path / "d", train=[_ROW], holdout=[{**_ROW, "topic": "sport"}])
    folders = StoredFolders(ArtifactStore(tmp_path.as_uri()), TrustedKeys(tmp_path), tmp_path)
    folders.check_dataset(replace(spec(_WRITER, dataset_uri=uri), slices=("length", "topic")))
    with pytest.raises(InvalidArgumentError, match="has no column 'language'") as refused:
        folders.check_dataset(replace(spec(_WRITER, dataset_uri=uri), slices=("language", "length")))
    assert fields(refused.value) == ["spec.evaluation.slices"]


def test_slices_are_named_in_any_order_and_are_part_of_a_run() -> None:
    usual = spec(_WRITER)
    message = spec_to(usual)
    assert not message.evaluation.slices
    assert not message.evaluation.min_slice_examples
    message.evaluation.slices.extend(["topic", "length"])
    message.evaluation.min_slice_examples = 30
    named = spec_from(message)
    assert (named.slices, named.min_slice_examples) == (("length", "topic"), 30)
    assert spec_from(spec_to(named)) == named
    assert TrainingSpec.from_json(json.loads(json.dumps(named.to_json())), stored_method) == named
    assert named.digest("base") != usual.digest("base")
    # Stored by an earlier release.
    earlier = {name: value for name, value in usual.to_json().items() if "slice" not in name}
    assert TrainingSpec.from_json(earlier, stored_method) == usual


def test_a_data_set_that_is_gone_or_another_one_is_refused(tmp_path: Path) -> None:
    folders = StoredFolders(ArtifactStore(tmp_path.as_uri()), TrustedKeys(tmp_path), tmp_path)
    with pytest.raises(NotFoundError) as missing:
        folders.check_dataset(spec(_WRITER, dataset_uri=(tmp_path / "none").as_uri()))
    assert fields(missing.value) == ["spec.dataset.uri"]
    uri = snapshot(tmp_path / "d", train=[_ROW], holdout=[_ROW])
    folders.check_dataset(spec(_WRITER, dataset_uri=uri))
    (tmp_path / "d" / "manifest.json").write_text(json.dumps({"digest": "1" * 64}))
    with pytest.raises(FailedPreconditionError, match="not the expected one"):
        folders.check_dataset(spec(_WRITER, dataset_uri=uri))


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"processes": 2}, "spec.processes", "name strategy ddp, fsdp or tp"),
        ({"strategy": "ddp"}, "spec.processes", "2 or more"),
        ({"strategy": "ddp", "processes": 5}, "spec.optimization.batch_size", "needs an example"),
        ({"strategy": "ddp", "processes": 2, "method": Kto()}, "spec.strategy", "choose from single"),
        ({"strategy": "fsdp", "processes": 2, "method": Dpo()}, "spec.strategy", "choose from single, ddp"),
        (
            {"strategy": "fsdp", "processes": 2, "method": Lora(use_dora=True)},
            "spec.strategy",
            "choose from single, ddp",
        ),
        (
            {"strategy": "fsdp", "processes": 2, "optimization": Optimization(max_steps=2, precision="fp16")},
            "spec.optimization.precision",
            "bf16",
        ),
        ({"strategy": "tp", "processes": 2, "method": Dpo()}, "spec.strategy", "choose from single, ddp"),
        ({"strategy": "tp", "processes": 2, "task": _LABELLER}, "spec.strategy", "choose from single, ddp, fsdp"),
    ],
)
def test_work_that_processes_cannot_share_is_refused(changes: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why) as refused:
        replace(spec(_WRITER), **changes)
    assert fields(refused.value) == [field]


@pytest.mark.parametrize(
    ("base", "processes", "field", "why"),
    [
        ({"family": "phi3"}, 2, "spec.strategy", "a model of phi3; it splits gemma"),
        ({"family": ""}, 2, "spec.strategy", "an unknown family"),
        ({}, 4, "spec.processes", "has 9 attention heads, which 4 processes"),
        ({"heads": 8}, 4, "spec.processes", "has 3 heads of keys and values"),
        ({"heads": 8, "key_heads": 4, "feed_forward": 30}, 4, "spec.processes", "has 30 units"),
    ],
)
def test_layers_that_processes_cannot_split_are_refused(
    base: dict[str, Any], processes: int, field: str, why: str
) -> None:
    known = BaseModel("b", "1", "causal", 8192, "llama", heads=9, key_heads=3, feed_forward=1536)
    spec(_WRITER, strategy="tp", processes=3).check_base(known)
    with pytest.raises(InvalidArgumentError, match=why) as refused:
        spec(_WRITER, strategy="tp", processes=processes).check_base(replace(known, **base))
    assert fields(refused.value) == [field]


def test_every_family_that_is_split_has_a_plan_of_known_styles() -> None:
    from transformers import CONFIG_MAPPING

    for family in SPLIT_FAMILIES:
        styles = {*(CONFIG_MAPPING[family]().base_model_tp_plan or {}).values()}
        assert {"colwise", "rowwise"} <= styles <= {"colwise", "rowwise", "replicated_with_grad_allreduce"}, family


def test_one_process_is_the_run_of_earlier_releases() -> None:
    one, two = spec(_WRITER), spec(_WRITER, strategy="ddp", processes=2)
    assert spec(_WRITER, strategy="single", processes=1).digest("") == one.digest("")
    assert two.digest("") != one.digest("")
    assert TrainingSpec.from_json(json.loads(json.dumps(two.to_json())), make_method) == two
    stored = json.loads(json.dumps(one.to_json()))
    del stored["strategy"], stored["processes"]
    assert TrainingSpec.from_json(stored, make_method) == one
    assert spec_from(spec_to(two)) == two
    message = spec_to(one)
    assert (message.strategy, message.processes) == (run_pb2.STRATEGY_UNSPECIFIED, 0)
    assert spec_from(message) == one
