"""What the runs of the tasks of encoders share: the model, its training, its answers, and its builds."""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from services.kit.engine import LOGITS, RUNTIME
from services.kit.probes import TEXTS as PROBE_TEXTS
from services.training.adapters import encoder_builds
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import Champion, Job, write_json
from services.training.domain.report import Variant
from services.training.domain.students import Student
from services.training.domain.tasks import Task
from services.training.engine.classifier import build_classifier, with_embedding
from services.training.engine.tasks import Objective, pad_right
from services.training.worker.champion import Rows
from services.training.worker.parity import SAME, Parity, agreement, parity_warnings
from services.training.worker.phases import (
    Material,
    Phase,
    Trainable,
    check_stop,
    kept,
    kept_folder,
    seal,
    train_adapted,
)
from services.training.worker.ranks import Ranks
from services.training.worker.sequence import A, Builds, TaskRun
from services.training.worker.students import drop_students, learnt_student

if TYPE_CHECKING:
    import numpy as np

_BATCH = 32
_WEIGHTS = "model.safetensors"
_OUTPUTS = "labels.json"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's tokens, and the characters of each, start and end, where each token has an output."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def encoder_of(folder: Path) -> Any:
    """The encoder in a folder, in fp32."""
    import torch
    from transformers import AutoModel

    return AutoModel.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False)


def classifier_of(folder: Path, labels: int, *, seed: int, each_token: bool = False, ordered: bool = False) -> Any:
    """A classifier on the encoder in a folder, see `build_classifier`."""
    encoder = encoder_of(folder)
    hidden = encoder.config.hidden_size
    return build_classifier(encoder, hidden, labels, seed=seed, each_token=each_token, ordered=ordered)


class EncoderRun(TaskRun[A]):
    """A run that trains an encoder, by default as a classifier; `outputs` say what each of its numbers means.

    Args:
        job: the run.
        material: its data and base model.
        should_stop: see `run_job`.
        outputs: in the order of the classifier's outputs.
    """

    EACH_TOKEN: ClassVar[bool] = False
    """Whether each token gets an output, or the whole text."""
    ORDERED: ClassVar[bool] = False
    """Whether the outputs have an order, see `ordered_head`."""
    INDEPENDENT: ClassVar[bool] = False
    """Whether each output has a probability of its own."""

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool], outputs: Sequence[str]) -> None:
        super().__init__(job, material, should_stop)
        self.outputs = list(outputs)
        self._model = self.make_model(material.base_folder, job.spec.optimization.seed, self.outputs)

    def make_model(self, folder: Path, seed: int, outputs: Sequence[str]) -> Any:
        """The module that is trained, on the encoder in a folder; it has that as `encoder`."""
        return classifier_of(folder, len(outputs), seed=seed, each_token=self.EACH_TOKEN, ordered=self.ORDERED)

    def save_build(self, model: Any, path: Path) -> None:
        """Writes the fp32 build of a trained module."""
        encoder_builds.save_fp32(with_embedding(model), path, vocabulary=model.encoder.config.vocab_size)

    @abstractmethod
    def objective(self, tokens: Sequence[Tokens]) -> Objective:
        """What the classifier learns from the training texts, of which these are the tokens."""

    @property
    def learnt(self) -> Rows:
        """The training records that are learnt."""
        return self.material.train

    @property
    def served_as(self) -> str:
        """The task of serving that answers with its builds."""
        return self.job.spec.task.kind

    def chosen(self, logits: np.ndarray[Any, Any]) -> Any:
        """What is taken of logits [..., outputs]: the number of the highest."""
        return encoder_builds.highest(logits)

    def settle(self, model: Any) -> None:
        """Changes the trained and merged model before it is kept."""

    def described(self) -> Mapping[str, Any]:
        """What the manifest of a build says besides."""
        return {}

    @abstractmethod
    def named(self, found: Sequence[Any], outputs: Sequence[str], tokens: Sequence[Tokens]) -> list[A]:
        """The answers behind a classifier's outputs: of each text a number, or a list with one for each token."""

    @abstractmethod
    def compared_as(self, answer: A) -> str:
        """An answer as serving gives it, see `services.kit.probes`."""

    def trainable(self) -> Trainable:
        """See `TaskRun`."""
        model = self._model
        model.encoder = self.job.spec.method.adapt(model.encoder)
        if (head := getattr(model, "head", None)) is not None:
            head.requires_grad_(True)
        model.to(self.material.device)
        objective = self.objective(self._tokens(self.material.tokenizer, self.job.spec.task, self.learnt))
        return Trainable(model, model.encoder, objective)

    def train(self, ranks: Ranks) -> Mapping[str, float]:
        """See `TaskRun`. What its outputs mean is kept beside the model, for when it is the champion of a later run."""
        from safetensors.torch import save_model

        job, method, model, tokenizer = self.job, self.job.spec.method, self._model, self.material.tokenizer
        merged = job.folder / "merged"
        if (merged / _WEIGHTS).is_file():
            _load_weights(model, merged)
        else:
            train_adapted(job, self.trainable(), self.material.device, self.should_stop, ranks)
            model.encoder = method.merge(model.encoder)
            self.settle(model.to(self.material.device).eval())

            def save(path: Path) -> None:
                save_model(model, str(path / _WEIGHTS))
                tokenizer.save_pretrained(str(path))
                write_json(path / _OUTPUTS, self.outputs)

            kept_folder(merged, save)
        figures: dict[str, float] = kept(job.folder / "eval" / "train.json", dict)
        model.to(self.material.device).eval()
        return figures

    def answers(self, rows: Rows) -> list[A]:
        """See `TaskRun`."""
        return self._ask(self._model, self.material.tokenizer, self.job.spec.task, self.outputs, rows)

    def champion_answers(self, champion: Champion, folder: Path, rows: Rows) -> list[A]:
        """See `TaskRun`."""
        from transformers import AutoTokenizer

        outputs: list[str] = json.loads((folder / _OUTPUTS).read_text(encoding="utf-8"))
        base = BaseModels(self.job.models_dir, self.job.downloads_dir).prepare(champion.spec.base_model)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        model = self.make_model(base, 0, outputs)
        _load_weights(model, folder)
        return self._ask(model.to(self.material.device).eval(), tokenizer, champion.spec.task, outputs, rows)

    def compress(self, tuned: Sequence[A]) -> Builds:
        """See `TaskRun`."""
        job, spec, task = self.job, self.job.spec, self.job.spec.task
        phase = Phase(job, "compress", len(spec.variants) + len(spec.students), "builds")
        folders = self._build()
        measured: dict[str, Any] = kept(job.folder / "eval" / "builds.json", partial(self.measured, folders))
        parity = self.parity(tuned, {name: measured[name]["answers"] for name in folders})
        variants = []
        for name, path in folders.items():
            manifest = {
                "task": self.served_as,
                "runtime": RUNTIME,
                "precision": name,
                "base_model": spec.base_model,
                "labels": self.outputs,
                "max_input_tokens": task.max_input_tokens,
                "embedding_size": encoder_builds.embedding_size(path),
                parity.name: parity.of[name],
                **self.described(),
            }
            item = measured[name]
            digest, size = seal(job, path, manifest, item.get("probes"))
            quality = self.quality(item["answers"])
            speed = {key: item[key] for key in ("examples_per_second", "latency_p50_ms")}
            variants.append(Variant(name, path.as_uri(), digest, size, quality, **speed))
        phase.end()
        return Builds(tuple(variants), parity.figures, parity.warnings)

    def measured(self, folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """The answers of each build to the hold-out and, as they are compared, to the probes; and its speed."""
        holdout = self._tokens(self.material.tokenizer, self.job.spec.task, self.material.holdout)
        probes = self._probes()
        texts, asked = ([text.ids for text in each] for each in (holdout, probes))
        found = encoder_builds.measure(folders, texts, asked, lambda outputs: self.chosen(outputs[LOGITS][0]))
        return {
            name: {
                "answers": self.named(item.answers, self.outputs, holdout),
                "probes": [self.compared_as(each) for each in self.named(item.probes, self.outputs, probes)],
                "latency_p50_ms": item.latency_p50_ms,
                "examples_per_second": item.examples_per_second,
            }
            for name, item in found.items()
        }

    def parity(self, tuned: Sequence[A], builds: Mapping[str, Sequence[A]]) -> Parity:
        """How much the builds answer as the tuned model does: the share of equal answers to the hold-out."""
        found = {name: [self.compared_as(answer) for answer in answers] for name, answers in builds.items()}
        same = agreement([self.compared_as(answer) for answer in tuned], found)
        return Parity(SAME, same, parity_warnings(same))

    def _probes(self) -> list[Tokens]:
        return self._tokens(self.material.tokenizer, self.job.spec.task, [{"text": text} for text in PROBE_TEXTS])

    def _build(self) -> dict[str, Path]:
        """Creates the missing builds."""
        spec, place = self.job.spec, self.job.folder / "variants"

        def export(path: Path) -> None:
            self._export(self._model, path)

        # int8 is derived from fp32, which is therefore always built.
        folders = {"fp32": kept_folder(place / "fp32", export)}
        if "int8" in spec.variants:

            def quantize(path: Path) -> None:
                self._quantize(folders["fp32"], path, self._training_tokens)

            folders["int8"] = kept_folder(place / "int8", quantize)
        found: dict[str, Path] = {name: folders[name] for name in spec.variants}
        for student in spec.students:
            found[student.name] = kept_folder(place / student.name, partial(self._build_student, student))
        drop_students(self.job.folder)
        return found

    def _build_student(self, student: Student, path: Path) -> None:
        texts = self._training_tokens
        model = learnt_student(
            self.job, self.material, self._model, student, texts, self.should_stop, independent=self.INDEPENDENT
        )
        if student.precision == "fp32":
            self._export(model, path)
            return
        full = path / "fp32"
        self._export(model, full)
        self._quantize(full, path, texts)
        shutil.rmtree(full)

    @cached_property
    def _training_tokens(self) -> list[list[int]]:
        return [text.ids for text in self._tokens(self.material.tokenizer, self.job.spec.task, self.material.train)]

    def _export(self, model: Any, path: Path) -> None:
        self.save_build(model.to("cpu"), path)
        self.material.tokenizer.save_pretrained(str(path))

    def _quantize(self, fp32: Path, path: Path, calibration: Sequence[list[int]]) -> None:
        encoder_builds.save_int8(fp32, path, calibration)
        self.material.tokenizer.save_pretrained(str(path))

    def _ask(self, model: Any, tokenizer: Any, task: Task, outputs: Sequence[str], rows: Rows) -> list[A]:
        tokens = self._tokens(tokenizer, task, rows)

        def answers(logits: Any) -> list[Any]:
            found: list[Any] = self.chosen(logits.float().cpu().numpy())
            return found

        return self.named(self._read(model, tokenizer, tokens, answers), outputs, tokens)

    def logits_of(self, model: Any, rows: Rows) -> list[np.ndarray[Any, Any]]:
        """A model's logits of each row; it lies on the run's device."""
        tokenizer = self.material.tokenizer
        tokens = self._tokens(tokenizer, self.job.spec.task, rows)
        return self._read(model, tokenizer, tokens, lambda logits: list(logits.float().cpu().numpy()))

    def _read(
        self, model: Any, tokenizer: Any, tokens: Sequence[Tokens], answers: Callable[[Any], list[Any]]
    ) -> list[Any]:
        """What a module gives for texts, in batches; `answers` makes a value for each text of a batch of it."""
        import torch

        device = self.material.device
        phase = Phase(self.job, "evaluate", len(tokens), "texts")
        found: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(tokens), _BATCH):
                batch, mask = pad_right([text.ids for text in tokens[start : start + _BATCH]], tokenizer.pad_token_id)
                found += answers(model(batch.to(device), mask.to(device)))
                phase.advance(len(found))
                check_stop(self.should_stop)
        phase.end()
        return found

    def _tokens(self, tokenizer: Any, task: Task, rows: Rows) -> list[Tokens]:
        encoded = tokenizer(
            [row["text"] for row in rows],
            truncation=True,
            max_length=task.max_tokens,
            # Text that looks like a special token, such as [SEP], is encoded as text, as serving does.
            split_special_tokens=True,
            # Not every tokenizer can say it.
            return_offsets_mapping=self.EACH_TOKEN,
        )
        places = encoded["offset_mapping"] if self.EACH_TOKEN else [()] * len(rows)
        return [
            Tokens(list(ids), [(start, end) for start, end in offsets])
            for ids, offsets in zip(encoded["input_ids"], places, strict=True)
        ]


def _load_weights(model: Any, folder: Path) -> None:
    """Reads the weights that `EncoderRun.train` kept in a folder."""
    from safetensors.torch import load_model

    load_model(model, str(folder / _WEIGHTS))
