"""Model cards: what both forms show of a real message, and what they leave out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from tidemill.training.v1.run_pb2 import LossPoint, Run, Slice

from gateway.cards.forms import html, markdown
from gateway.cards.model_card import ModelCard
from tests.integration.gateway.console_peers import dataset_version, published
from tests.unit.cli.cycles import metric
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, text_of
from tests.unit.gateway.test_console_lineage import finished

FORMS = pytest.mark.parametrize("form", [markdown, html])


def described() -> Run:
    """A run of a writer, as training reports it."""
    run = finished()
    spec, report = run.spec, run.report
    spec.generation.prompt_template = "Write a headline.\n\n{text}"
    spec.lora.r = 16
    spec.optimization.batch_size = 4
    spec.optimization.gradient_accumulation = 2
    spec.optimization.learning_rate = 0.0002
    report.figures.update(
        {
            "train_seconds": 245.0,
            "train_tokens_per_second": 1130.0,
            "peak_memory_bytes": 2.9e9,
            "same_answer_as_merged_fp32": 1.0,
            "same_answer_as_merged_int8": 0.83,
        }
    )
    report.loss_curve.extend(LossPoint(step=step, loss=3.0 - step / 100) for step in range(1, 60))
    for number, variant in enumerate(report.variants):
        variant.digest = str(number) * 64
        variant.loss_increase.CopyFrom(metric(0.012 * number))
    return run


def words_of(form: Callable[[ModelCard], str], card: ModelCard) -> str:
    """What a person reads."""
    text = form(card)
    return (
        text_of(text)
        if form is html
        else " ".join(re.sub(r"\|[-:|]+\|", "", text).replace("|", " ").replace("\\", "").split())
    )


@FORMS
def test_a_card_says_where_a_model_comes_from_and_how_good_it_is(form: Callable[[ModelCard], str]) -> None:
    run, version = described(), published()
    version.digest = run.report.variants[1].digest
    words = words_of(form, ModelCard(run, version, dataset_version()))
    for wanted in (
        "models/headlines/versions/3",
        "run runs/01jrun",
        "base model smollm2",
        "records 1,859 for training, 200 held out",
        "sources bbc, answers.headlines",
        "method lora: r 16",
        "length 1,200 steps of 8 examples",
        "learning rate 0.0002",
        "time 4:05",
        "peak memory 2.9 GB",
        "tokens a second 1,130",
        "base model 0.129 [0.109, 0.149]",
        "this model 0.223 [0.203, 0.243]",
        "over the base model +0.094 [+0.074, +0.114] better",
        "int8, published 0.219 [0.199, 0.239] 83.1 41.0 ms 171 MB +1.2% 83.0%",
        "int4 0.165",
        "Brown sees slower growth",
    ):
        assert wanted in words, wanted


def test_the_html_form_has_plots_and_loads_nothing() -> None:
    page = html(ModelCard(described(), published(), dataset_version()))
    assert page.count('<svg class="plot"') == 3
    assert "default-src 'none'" in page
    assert not re.search(r"<script|src=|href=|url\(", page)
    # The plots have their colours without the console.
    assert "--good:" in page


@FORMS
def test_what_data_says_is_never_markup(form: Callable[[ModelCard], str]) -> None:
    run = described()
    run.report.examples[0].tuned = HOSTILE
    run.report.examples[0].input = CHINESE
    run.spec.base_model = "a|b\n# c"
    run.warnings.append(HOSTILE)
    text = form(ModelCard(run))
    assert "<script>" not in text
    assert CHINESE in text
    if form is markdown:
        assert "a\\|b \\# c" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        ends = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
        assert all(3 <= count <= 12 for count in ends)


@FORMS
def test_a_candidate_without_champion_corrections_or_examples_has_a_card(form: Callable[[ModelCard], str]) -> None:
    run = described()
    del run.report.examples[:]
    run.report.ClearField("base")
    run.report.ClearField("difference")
    words = words_of(form, ModelCard(run))
    assert words.count("runs/01jrun") >= 2
    assert "The base model alone has no answer to this task." in words
    for absent in ("Corrections", "Examples", "Parts of the hold-out", "champion", "published", "records"):
        assert absent not in words.replace("held-out records", ""), absent


@FORMS
def test_corrections_and_parts_of_the_hold_out_are_shown(form: Callable[[ModelCard], str]) -> None:
    run = described()
    for name, value in (("champion", 0.4), ("tuned", 0.7), ("over_champion", 0.3)):
        getattr(run.report.corrections, name).CopyFrom(metric(value))
    part = Slice(attribute="source", value="bbc", examples=120, p_worse=0.01)
    part.comparison.tuned.CopyFrom(metric(0.2))
    part.comparison.over_champion.CopyFrom(metric(-0.1))
    run.report.slices.extend([part, Slice(attribute="source", value="rare", examples=3)])
    words = words_of(form, ModelCard(run))
    assert "champion 0.400 [0.380, 0.420]" in words
    assert "source: bbc 120 0.200 [0.180, 0.220] -0.100 over the champion worse" in words
    assert "source: rare 3 too few to measure" in words
