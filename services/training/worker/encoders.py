"""What the runs of the two tasks of encoders share: the model, its training, and its builds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.kit.engine import RUNTIME
from services.training.adapters import encoder_builds
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import Champion, Job, write_json
from services.training.domain.report import Metric, Variant
from services.training.engine.classifier import build_classifier, with_embedding
from services.training.engine.tasks import Objective
from services.training.worker import phases
from services.training.worker.phases import Phase, kept, kept_folder

if TYPE_CHECKING:
    import torch

_WEIGHTS = "model.safetensors"
_OUTPUTS = "labels.json"


def classifier_of(folder: Path, labels: int, *, seed: int, each_token: bool = False) -> Any:
    """A classifier on the encoder in a folder, see `build_classifier`."""
    import torch
    from transformers import AutoModel

    encoder: Any = AutoModel.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return build_classifier(encoder, encoder.config.hidden_size, labels, seed=seed, each_token=each_token)


def _load_weights(model: Any, folder: Path) -> None:
    """Reads the weights that `train` stored in a folder."""
    from safetensors.torch import load_model

    load_model(model, str(folder / _WEIGHTS))


def load_champion(
    job: Job, champion: Champion, folder: Path, device: torch.device, *, each_token: bool = False
) -> tuple[Any, Any, list[str]]:
    """An earlier run's classifier, its tokenizer, and what its outputs mean, from what `train` stored in a folder."""
    from transformers import AutoTokenizer

    outputs: list[str] = json.loads((folder / _OUTPUTS).read_text(encoding="utf-8"))
    base = BaseModels(job.models_dir, job.downloads_dir).prepare(champion.spec.base_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    model = classifier_of(base, len(outputs), seed=0, each_token=each_token)
    _load_weights(model, folder)
    return model.to(device).eval(), tokenizer, outputs


def train(
    job: Job,
    model: Any,
    objective: Callable[[], Objective],
    device: torch.device,
    tokenizer: Any,
    should_stop: Callable[[], bool],
    outputs: Sequence[str],
) -> dict[str, float]:
    """Trains a classifier and keeps it merged in the run's folder, or reads it from there.

    Args:
        job: the run.
        model: the classifier; changed in place.
        objective: what it learns.
        device: where it is trained, and is afterwards.
        tokenizer: kept beside it.
        should_stop: see `phases.check_stop`.
        outputs: what its outputs mean, kept beside it for when it is the champion of a later run.

    Returns:
        The figures of the training.
    """
    from safetensors.torch import save_model

    method, merged = job.spec.method, job.folder / "merged"
    if (merged / _WEIGHTS).is_file():
        _load_weights(model, merged)
    else:
        model.encoder = method.adapt(model.encoder)
        model.head.requires_grad_(True)
        model.to(device)
        phases.train_adapted(job, model, model.encoder, objective(), device, should_stop)
        model.encoder = method.merge(model.encoder)

        def save(path: Path) -> None:
            save_model(model, str(path / _WEIGHTS))
            tokenizer.save_pretrained(str(path))
            write_json(path / _OUTPUTS, list(outputs))

        kept_folder(merged, save)
    phases.drop_checkpoints(job)
    figures: dict[str, float] = kept(job.folder / "eval" / "train.json", dict)
    model.to(device).eval()
    return figures


def compress(
    job: Job,
    model: Any,
    tokenizer: Any,
    labels: Sequence[str],
    calibration: Sequence[list[int]],
    texts: Sequence[list[int]],
    stored: Callable[[list[Any]], list[Any]],
    quality: Callable[[list[Any]], Metric],
) -> tuple[Variant, ...]:
    """Makes the builds of a classifier, and measures each by the runtime that serves it.

    Args:
        job: the run.
        model: the tuned classifier, on the processor.
        tokenizer: goes along with each build.
        labels: what its outputs mean, in their order.
        calibration: token ids of training texts, for int8.
        texts: token ids of the hold-out.
        stored: what is kept of a build's answers; an answer is the index of a text's label, or of each token's.
        quality: the metric of what is kept.
    """
    spec, task, folder = job.spec, job.spec.task, job.folder
    phase = Phase(job, "compress", len(spec.variants), "builds")

    def export(path: Path) -> None:
        encoder_builds.save_fp32(with_embedding(model), path, vocabulary=model.encoder.config.vocab_size)
        tokenizer.save_pretrained(str(path))

    # int8 is derived from fp32, which is therefore always built.
    folders = {"fp32": kept_folder(folder / "variants" / "fp32", export)}
    if "int8" in spec.variants:

        def quantize(path: Path) -> None:
            encoder_builds.save_int8(folders["fp32"], path, calibration)
            tokenizer.save_pretrained(str(path))

        folders["int8"] = kept_folder(folder / "variants" / "int8", quantize)
    folders = {name: folders[name] for name in spec.variants}

    def measure() -> dict[str, Any]:
        return {
            name: {
                "answers": stored(item.answers),
                "latency_p50_ms": item.latency_p50_ms,
                "examples_per_second": item.examples_per_second,
            }
            for name, item in encoder_builds.measure(folders, texts).items()
        }

    measured = kept(folder / "eval" / "variants.json", measure)
    variants = []
    for name, path in folders.items():
        manifest = {
            "task": task.kind,
            "runtime": RUNTIME,
            "precision": name,
            "base_model": spec.base_model,
            "labels": list(labels),
            "max_input_tokens": task.max_input_tokens,
            "embedding_size": encoder_builds.embedding_size(path),
        }
        digest, size = phases.seal(job, path, manifest)
        item = measured[name]
        speed = {key: item[key] for key in ("examples_per_second", "latency_p50_ms")}
        variants.append(Variant(name, path.as_uri(), digest, size, quality(item["answers"]), **speed))
    phase.end()
    return tuple(variants)
