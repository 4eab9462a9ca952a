"""A run that trains a causal language model to write text from text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from services.kit.engine import RUNTIME
from services.training.adapters import language_builds
from services.training.adapters.job import Champion, Job
from services.training.domain.report import Example, Report, Variant
from services.training.domain.tasks import GenerationTask, VariantName
from services.training.engine.generation import greedy_answers, reference_losses
from services.training.engine.method_capabilities import AddsTokens
from services.training.engine.metrics import (
    TextLoss,
    compared,
    loss_increase,
    loss_per_token,
    mean_with_interval,
    rouge_l,
)
from services.training.engine.prompts import prompts_of, training_pairs
from services.training.engine.tasks import Pair
from services.training.worker.champion import Rows, champion_answers
from services.training.worker.objectives import agreement_with_people, objective_of
from services.training.worker.phases import (
    Material,
    Phase,
    check_stop,
    drop_checkpoints,
    kept,
    kept_folder,
    material_of,
    precision_warnings,
    seal,
    shown_examples,
    train_adapted,
)

logger = logging.getLogger(__name__)
_INPUT_SHOWN = 300
# Share of the held-out prompts that a build answers word for word like the merged model.
_SAME = "same_answer_as_merged"


def run(job: Job, should_stop: Callable[[], bool]) -> Report:
    """Trains, evaluates and compresses; each result is stored in the run's folder."""
    import torch
    from transformers import AutoModelForCausalLM

    spec, folder = job.spec, job.folder
    task = spec.task
    assert isinstance(task, GenerationTask)

    phase = Phase(job, "prepare")
    material = material_of(job)
    device, holdout, corrections = material.device, material.holdout, material.corrections
    base_builder = prompts_of(material.base_folder, task)

    def base_prompts(rows: Sequence[dict[str, str]]) -> list[list[int]]:
        return [pair.prompt for pair in training_pairs(base_builder, material.tokenizer, task, rows)]

    # From here on the tokenizer and chat template are those of the tuned model.
    tokenizer, tokenizer_folder = _tuned_tokenizer(job, material)
    builder = prompts_of(tokenizer_folder, task)
    held_pairs = training_pairs(builder, tokenizer, task, holdout)
    references = [row[task.target_field] for row in holdout]

    def load(source: Path) -> Any:
        made: Any = AutoModelForCausalLM
        options = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
        return made.from_pretrained(str(source), **options).to(device).eval()

    model = load(material.base_folder)
    phase.end()
    check_stop(should_stop)

    def answers(which: str, prompts: Sequence[list[int]], asked: Any = None, words: Any = None) -> list[str]:
        phase = Phase(job, "evaluate", len(prompts), f"{which} answers")

        def on_progress(done: int) -> None:
            phase.advance(done)
            check_stop(should_stop)

        found = greedy_answers(
            asked or model,
            words or tokenizer,
            prompts,
            max_new_tokens=task.max_target_tokens,
            device=device,
            on_progress=on_progress,
        )
        phase.end()
        return found

    base_answers = kept(folder / "eval" / "base.json", lambda: answers("base", base_prompts(holdout)))
    base_corrected = kept(
        folder / "eval" / "base_corrections.json",
        lambda: answers("base", base_prompts(corrections)) if corrections else [],
    )
    check_stop(should_stop)

    merged = folder / "merged"
    if not merged.is_dir():
        if isinstance(spec.method, AddsTokens):
            spec.method.add_embeddings(model, tokenizer, task)
        model = spec.method.adapt(model)
        objective = objective_of(spec, builder, tokenizer, material.train)
        train_adapted(job, model, model, objective, device, should_stop)
        learnt = agreement_with_people(spec, builder, tokenizer, holdout, model)
        kept(folder / "eval" / "preferences.json", lambda: learnt)
        model = spec.method.merge(model)

        def save(path: Path) -> None:
            model.save_pretrained(str(path))
            tokenizer.save_pretrained(str(path))

        kept_folder(merged, save)
    drop_checkpoints(job)
    figures = {**kept(folder / "eval" / "train.json", dict), **kept(folder / "eval" / "preferences.json", dict)}
    corrected_file = folder / "eval" / "tuned_corrections.json"
    if not ((folder / "eval" / "tuned.json").is_file() and corrected_file.is_file()):
        model = load(merged)
    tuned = kept(
        folder / "eval" / "tuned.json",
        lambda: {
            "answers": answers("tuned", [pair.prompt for pair in held_pairs]),
            "losses": [
                asdict(loss)
                for loss in reference_losses(
                    model, held_pairs, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id, device=device
                )
            ],
        },
    )
    corrected_pairs = training_pairs(builder, tokenizer, task, corrections) if corrections else []
    tuned_corrected = kept(
        corrected_file,
        lambda: answers("tuned", [pair.prompt for pair in corrected_pairs]) if corrections else [],
    )
    tuned_answers = tuned["answers"]
    tuned_losses = [TextLoss(**item) for item in tuned["losses"]]
    check_stop(should_stop)

    # Frees half a gigabyte before the champion is loaded, and the builds are created.
    model = None

    def by_champion(champion: Champion, path: Path, rows: Rows) -> list[str]:
        from transformers import AutoTokenizer

        own, words = champion.spec.task, AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        assert isinstance(own, GenerationTask)
        # With its own template, and what is asked for now as the wanted answer, which its prompts do not depend on.
        wanted = replace(own, target_field=task.target_field)
        prompts = [pair.prompt for pair in training_pairs(prompts_of(path, own), words, wanted, rows)]
        return answers("champion's", prompts, load(path), words)

    champion = champion_answers(job, holdout, corrections, by_champion)
    variants, agreement = _compress(job, task, merged, held_pairs, references, tuned_answers, tuned_losses, should_stop)
    base_scores, tuned_scores = rouge_l(references, base_answers), rouge_l(references, tuned_answers)
    wanted = [row[task.target_field] for row in corrections]
    found = compared(
        "rouge_l",
        tuned_scores,
        base_scores,
        None if champion.holdout is None else rouge_l(references, champion.holdout),
    )
    gains = [t - b for t, b in zip(tuned_scores, base_scores, strict=True)]
    # Examples with gains from large to small, not just the best five.
    order = sorted(range(len(gains)), key=lambda i: gains[i], reverse=True)
    shown = shown_examples(order)
    return Report(
        tuned=found.tuned,
        base=found.base,
        difference=found.over_base,
        examples=tuple(
            Example(
                holdout[i]["record_id"],
                holdout[i]["text"][:_INPUT_SHOWN],
                references[i],
                base_answers[i],
                tuned_answers[i],
            )
            for i in shown
        ),
        variants=variants,
        figures={**figures, **agreement},
        tuned_loss=loss_per_token(tuned_losses),
        warnings=(*precision_warnings(job, device), *parity_warnings(agreement), *champion.warnings),
        champion=found.champion,
        over_champion=found.over_champion,
        champion_run=champion.run,
        corrections=compared(
            "rouge_l",
            rouge_l(wanted, tuned_corrected),
            rouge_l(wanted, base_corrected),
            None if champion.corrections is None else rouge_l(wanted, champion.corrections),
        )
        if corrections
        else None,
    )


def _tuned_tokenizer(job: Job, material: Material) -> tuple[Any, Path]:
    """The tuned model's tokenizer, with the tokens that the method adds, and its folder."""
    from transformers import AutoTokenizer

    method = job.spec.method
    if not isinstance(method, AddsTokens):
        return material.tokenizer, material.base_folder
    folder = kept_folder(job.folder / "tokenizer", lambda path: method.write_tokenizer(material.base_folder, path))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    return tokenizer, folder


def parity_warnings(agreement: Mapping[str, float]) -> tuple[str, ...]:
    """A warning if the fp32 build, whose weights are the merged model's, answers anything differently."""
    share = agreement.get(f"{_SAME}_fp32", 1.0)
    if share == 1.0:
        return ()
    return (
        f"compression.variants: the fp32 build answers {1 - share:.1%} of the held-out prompts differently than the "
        "merged model; compare their answers before you publish it.",
    )


def _build(
    variants: Sequence[VariantName], merged: Path, place: Path, phase: Phase, should_stop: Callable[[], bool]
) -> dict[VariantName, Path]:
    """Creates the missing builds; the converted model, a second copy of all weights, is freed afterwards."""
    builds = language_builds.LanguageBuilds(merged)
    folders: dict[VariantName, Path] = {}
    for number, name in enumerate(variants, start=1):

        def make(path: Path, variant: VariantName = name) -> None:
            builds.build(path, variant)

        folders[name] = kept_folder(place / name, make)
        phase.advance(number)
        check_stop(should_stop)
    return folders


def _compress(
    job: Job,
    task: GenerationTask,
    merged: Path,
    pairs: list[Pair],
    references: list[str],
    tuned_answers: list[str],
    tuned_losses: list[TextLoss],
    should_stop: Callable[[], bool],
) -> tuple[tuple[Variant, ...], dict[str, float]]:
    spec, folder = job.spec, job.folder
    phase = Phase(job, "compress", len(spec.variants) + len(pairs), "builds and answers")
    folders = _build(spec.variants, merged, folder / "variants", phase, should_stop)

    def on_progress(done: int) -> None:
        phase.advance(len(spec.variants) + done)
        check_stop(should_stop)

    def measure() -> dict[str, Any]:
        found = language_builds.measure(
            folders, pairs, max_new_tokens=task.max_target_tokens, end=pairs[0].target[-1], on_progress=on_progress
        )
        return {
            name: {
                "answers": item.answers,
                "losses": [asdict(loss) for loss in item.losses],
                "tokens_per_second": item.tokens_per_second,
                "time_to_first_token_ms": item.time_to_first_token_ms,
            }
            for name, item in found.items()
        }

    measured = kept(folder / "eval" / "variants.json", measure)
    same = {
        name: sum(a == b for a, b in zip(measured[name]["answers"], tuned_answers, strict=True)) / len(tuned_answers)
        for name in folders
    }
    variants = []
    for name, path in folders.items():
        digest, size = seal(
            job,
            path,
            {
                "task": "generation",
                "runtime": RUNTIME,
                "precision": name,
                "base_model": spec.base_model,
                "prompt_template": task.prompt_template,
                "max_input_tokens": task.max_input_tokens,
                "max_new_tokens": task.max_target_tokens,
                _SAME: same[name],
            },
        )
        item = measured[name]
        losses = [TextLoss(**loss) for loss in item["losses"]]
        variants.append(
            Variant(
                name,
                path.as_uri(),
                digest,
                size,
                mean_with_interval("rouge_l", rouge_l(references, item["answers"])),
                tokens_per_second=item["tokens_per_second"],
                time_to_first_token_ms=item["time_to_first_token_ms"],
                loss=loss_per_token(losses),
                loss_increase=loss_increase(tuned_losses, losses),
            )
        )
    phase.end()
    return tuple(variants), {f"{_SAME}_{name}": share for name, share in same.items()}
