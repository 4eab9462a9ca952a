"""A run that trains a causal language model to write text from text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from services.kit.engine import RUNTIME
from services.kit.probes import TEXTS as PROBE_TEXTS
from services.training.adapters import language_builds
from services.training.adapters.job import Champion, Job
from services.training.domain.report import Metric, Variant
from services.training.domain.tasks import GenerationTask, VariantName
from services.training.engine.generation import greedy_answers, reference_losses
from services.training.engine.method_capabilities import AddsTokens
from services.training.engine.metrics import (
    Score,
    TextLoss,
    alone,
    loss_increase,
    loss_per_token,
    mean_of,
    rouge_l,
)
from services.training.engine.prompts import prompts_of, training_pairs
from services.training.engine.tasks import Pair
from services.training.worker.champion import Rows
from services.training.worker.objectives import agreement_with_people, objective_of
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
from services.training.worker.sequence import Builds, TaskRun

_LOSSES = "tuned-losses.json"


class GenerationRun(TaskRun[str]):
    """An answer is a text."""

    ANSWERS_UNTRAINED = True
    MEASURE = mean_of("rouge_l")

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        super().__init__(job, material, should_stop)
        task = job.spec.task
        assert isinstance(task, GenerationTask)
        self._task, self._merged = task, job.folder / "merged"
        # The tokenizer and the chat template are those of the tuned model.
        self._tokenizer, folder = _tuned_tokenizer(job, material)
        self._prompts = prompts_of(folder, task)
        self._holdout = self._pairs(material.holdout)
        self._model: Any = self._load(material.base_folder)

    def base_answers(self, rows: Rows) -> list[str]:
        """See `TaskRun`."""
        base, task = self.material, self._task
        pairs = training_pairs(prompts_of(base.base_folder, task), base.tokenizer, task, rows)
        return self._write("base", self._model, self._tokenizer, pairs)

    def trainable(self) -> Trainable:
        """See `TaskRun`."""
        spec, model = self.job.spec, self._model
        if isinstance(spec.method, AddsTokens):
            spec.method.add_embeddings(model, self._tokenizer, self._task)
        model = spec.method.adapt(model)
        return Trainable(model, model, objective_of(spec, self._prompts, self._tokenizer, self.material.train))

    def train(self, ranks: Ranks) -> Mapping[str, float]:
        """See `TaskRun`."""
        job, spec, tokenizer = self.job, self.job.spec, self._tokenizer
        if not self._merged.is_dir():
            trainable = self.trainable()
            model = trainable.adapted
            train_adapted(job, trainable, self.material.device, self.should_stop, ranks)
            learnt = agreement_with_people(spec, self._prompts, tokenizer, self.material.holdout, model)
            kept(job.folder / "eval" / "preferences.json", lambda: learnt)
            model = spec.method.merge(model)

            def save(path: Path) -> None:
                model.save_pretrained(str(path))
                tokenizer.save_pretrained(str(path))

            kept_folder(self._merged, save)
        # Answers are those of the model that was stored, loaded when it is asked.
        self._model = None
        return {
            **kept(job.folder / "eval" / "train.json", dict),
            **kept(job.folder / "eval" / "preferences.json", dict),
        }

    def answers(self, rows: Rows) -> list[str]:
        """See `TaskRun`."""
        return self._write("tuned", self._tuned(), self._tokenizer, self._pairs(rows))

    def answered(self) -> None:
        """Measures the loss of the tuned model, and frees it."""
        self._text_losses()
        # Half a gigabyte, before the champion is loaded and the builds are created.
        self._model = None

    def loss(self) -> Metric:
        """See `TaskRun`: per token of the references."""
        return loss_per_token(self._text_losses())

    def champion_answers(self, champion: Champion, folder: Path, rows: Rows) -> list[str]:
        """See `TaskRun`."""
        from transformers import AutoTokenizer

        own, tokenizer = champion.spec.task, AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        assert isinstance(own, GenerationTask)
        # With its own template, and what is asked for now as the wanted answer, which its prompts do not depend on.
        wanted = replace(own, target_field=self._task.target_field)
        pairs = training_pairs(prompts_of(folder, own), tokenizer, wanted, rows)
        return self._write("champion's", self._load(folder), tokenizer, pairs)

    def compress(self, tuned: Sequence[str]) -> Builds:
        """See `TaskRun`."""
        job, spec, task = self.job, self.job.spec, self._task
        phase = Phase(job, "compress", len(spec.variants) + len(self._holdout), "builds and answers")
        folders = self._build(phase)
        losses = self._text_losses()
        measured = kept(job.folder / "eval" / "builds.json", lambda: self._measured(folders, phase))
        same = agreement(tuned, {name: measured[name]["answers"] for name in folders})
        variants = []
        for name, path in folders.items():
            manifest = {
                "task": "generation",
                "runtime": RUNTIME,
                "precision": name,
                "base_model": spec.base_model,
                "prompt_template": task.prompt_template,
                "max_input_tokens": task.max_input_tokens,
                "max_new_tokens": task.max_target_tokens,
                SAME: same[name],
            }
            item = measured[name]
            digest, size = seal(job, path, manifest, item.get("probes"))
            own = [TextLoss(**loss) for loss in item["losses"]]
            variants.append(
                Variant(
                    name,
                    path.as_uri(),
                    digest,
                    size,
                    self.quality(item["answers"]),
                    tokens_per_second=item["tokens_per_second"],
                    time_to_first_token_ms=item["time_to_first_token_ms"],
                    loss=loss_per_token(own),
                    loss_increase=loss_increase(losses, own),
                )
            )
        phase.end()
        parity = Parity(SAME, same, parity_warnings(same))
        return Builds(tuple(variants), parity.figures, parity.warnings)

    def scored(self, rows: Rows, answers: Sequence[str]) -> list[Score]:
        """See `TaskRun`."""
        return alone(rouge_l([self.reference(row) for row in rows], answers))

    def ranked(self, tuned: Sequence[str], base: Sequence[str] | None) -> list[int]:
        """From the largest gain over the base model to the smallest."""
        assert base is not None
        references = [self.reference(row) for row in self.material.holdout]
        pairs = zip(rouge_l(references, tuned), rouge_l(references, base), strict=True)
        gains = [after - before for after, before in pairs]
        return sorted(range(len(gains)), key=lambda at: gains[at], reverse=True)

    def reference(self, row: Mapping[str, str]) -> str:
        """See `TaskRun`."""
        return row[self._task.target_field]

    def _pairs(self, rows: Rows) -> list[Pair]:
        return training_pairs(self._prompts, self._tokenizer, self._task, rows)

    def _load(self, folder: Path) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        made: Any = AutoModelForCausalLM
        options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
        return made.from_pretrained(str(folder), **options).to(self.material.device).eval()

    def _tuned(self) -> Any:
        if self._model is None:
            self._model = self._load(self._merged)
        return self._model

    def _write(self, which: str, model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> list[str]:
        phase = Phase(self.job, "evaluate", len(pairs), f"{which} answers")

        def on_progress(done: int) -> None:
            phase.advance(done)
            check_stop(self.should_stop)

        found = greedy_answers(
            model,
            tokenizer,
            [pair.prompt for pair in pairs],
            max_new_tokens=self._task.max_target_tokens,
            device=self.material.device,
            on_progress=on_progress,
        )
        phase.end()
        return found

    def _text_losses(self) -> list[TextLoss]:
        return [TextLoss(**loss) for loss in kept(self.job.folder / "eval" / _LOSSES, self._losses)]

    def _losses(self) -> list[dict[str, Any]]:
        """The tuned model's loss of each reference of the hold-out."""
        padding = self._tokenizer.pad_token_id or self._tokenizer.eos_token_id
        found = reference_losses(self._tuned(), self._holdout, pad_token_id=padding, device=self.material.device)
        return [asdict(loss) for loss in found]

    def _build(self, phase: Phase) -> dict[VariantName, Path]:
        """Creates the missing builds; the converted model, a second copy of all weights, is freed afterwards."""
        builds = language_builds.LanguageBuilds(self._merged)
        folders: dict[VariantName, Path] = {}
        for number, name in enumerate(self.job.spec.variants, start=1):

            def make(path: Path, variant: VariantName = name) -> None:
                builds.build(path, variant)

            folders[name] = kept_folder(self.job.folder / "variants" / name, make)
            phase.advance(number)
            check_stop(self.should_stop)
        return folders

    def _measured(self, folders: dict[VariantName, Path], phase: Phase) -> dict[str, Any]:
        """What each build answers, and how fast."""

        def on_progress(done: int) -> None:
            phase.advance(len(folders) + done)
            check_stop(self.should_stop)

        found = language_builds.measure(
            folders,
            self._holdout,
            max_new_tokens=self._task.max_target_tokens,
            end=self._holdout[0].target[-1],
            probes=[self._prompts.of_text(text) for text in PROBE_TEXTS],
            on_progress=on_progress,
        )
        return {
            name: {
                "answers": item.answers,
                "probes": item.probes,
                "losses": [asdict(loss) for loss in item.losses],
                "tokens_per_second": item.tokens_per_second,
                "time_to_first_token_ms": item.time_to_first_token_ms,
            }
            for name, item in found.items()
        }


def _tuned_tokenizer(job: Job, material: Material) -> tuple[Any, Path]:
    """The tuned model's tokenizer, with the tokens that the method adds, and its folder."""
    from transformers import AutoTokenizer

    method = job.spec.method
    if not isinstance(method, AddsTokens):
        return material.tokenizer, material.base_folder
    folder = kept_folder(job.folder / "tokenizer", lambda path: method.write_tokenizer(material.base_folder, path))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    return tokenizer, folder


RUN = GenerationRun
