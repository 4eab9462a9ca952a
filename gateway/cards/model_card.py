"""A model card: what was trained on what, how good it is beside others, and what its builds cost (arXiv:1810.03993)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from markupsafe import Markup
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.inference.v1.model_pb2 import ModelVersion
from tidemill.training.v1.run_pb2 import Comparison, Precision, Report, Run, Strategy, Variant

from gateway.cards.report import corrections_plot, gains, quality_plot, slice_rows
from gateway.figures.lines import loss_curve
from gateway.figures.marks import BuildMark, front
from gateway.formats import duration, interval, metric_name, rate, size

_SAME = ("same_answer_as_merged", "cosine_to_merged")
"""Figures of a report about the parity of a build with the trained model: the name, then the build's."""
_EXAMPLES = 8


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts; columns that `numbers` names, from 0, are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a card: sentences, then a table, then plots, which only the HTML form has."""

    title: str
    notes: Sequence[str] = ()
    table: Table | None = None
    plots: Sequence[tuple[str, Markup]] = ()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a card is made of.

    Args:
        run: which trained the model; with its report.
        version: that was published of it; None of a candidate.
        dataset: that it learnt; None if it cannot be read any more.
    """

    run: Run
    version: ModelVersion | None = None
    dataset: DatasetVersion | None = None

    @property
    def title(self) -> str:
        """The name of what is described."""
        return self.version.name if self.version is not None else self.run.name

    def sections(self) -> Iterator[Section]:
        """The parts in order; what the report lacks is left out."""
        yield Section("Origin", [*self.run.warnings], Table(("", ""), list(self._origin())))
        yield Section("Training", (), Table(("", ""), list(self._training())), self._loss())
        report = self.run.report
        if report.tuned.sample_size:
            yield self._quality()
        if report.corrections.tuned.sample_size:
            yield self._corrections()
        if report.slices:
            yield self._slices()
        if report.variants:
            yield self._builds()
        if report.examples:
            yield self._examples()

    def _origin(self) -> Iterator[tuple[str, str]]:
        run, version, data = self.run, self.version, self.dataset
        if version is not None:
            yield "published", f"{_moment(version.create_time)}, build {version.precision}"
            yield "digest", version.digest
        yield "run", run.name
        if run.model_version:
            yield "registered", run.model_version
        yield "base model", run.spec.base_model
        yield "data", run.spec.dataset.name
        if run.spec.dataset.digest:
            yield "data's digest", run.spec.dataset.digest
        if data is not None:
            yield "records", f"{data.train_count:,} for training, {data.holdout_count:,} held out"
            yield "sources", ", ".join(data.spec.sources)

    def _training(self) -> Iterator[tuple[str, str]]:
        spec, figures = self.run.spec, self.run.report.figures
        for choice in (spec.WhichOneof("task"), spec.WhichOneof("method")):
            if choice:
                given = _options(getattr(spec, choice))
                what = "task" if choice == spec.WhichOneof("task") else "method"
                yield what, choice.replace("_", " ") + (f": {given}" if given else "")
        options = spec.optimization
        length = f"{options.max_steps:,} steps" if options.max_steps else f"{options.epochs:g} epochs"
        yield "length", f"{length} of {options.batch_size * max(1, options.gradient_accumulation):,} examples"
        yield "learning rate", f"{options.learning_rate:g}"
        yield "precision", _name(Precision.Name(options.precision or Precision.PRECISION_FP32), "PRECISION_")
        if spec.processes > 1:
            yield "strategy", f"{_name(Strategy.Name(spec.strategy), 'STRATEGY_')}, {spec.processes} processes"
        yield "seed", str(options.seed)
        for words, value, shown in (
            ("time", figures.get("train_seconds"), duration),
            ("peak memory", figures.get("peak_memory_bytes"), size),
            ("tokens a second", figures.get("train_tokens_per_second"), rate),
        ):
            if value:
                yield words, shown(value)

    def _loss(self) -> list[tuple[str, Markup]]:
        points = self.run.report.loss_curve or self.run.loss_curve
        return _shown("Loss while training", loss_curve([(point.step, point.loss) for point in points]))

    def _quality(self) -> Section:
        report = self.run.report
        rows = _measured(report)
        rows += [
            [gain.words, f"{gain.metric.value:+.3f}", interval(gain.metric, signed=True), gain.status.word]
            for gain in gains(report)
            if "corrections" not in gain.words
        ]
        name = metric_name(report.tuned.name)
        notes = [f"{name} on {report.tuned.sample_size:,} held-out records, with 95 % intervals; gains are paired."]
        if not report.base.sample_size:
            notes.append("The base model alone has no answer to this task.")
        return Section(
            "Quality",
            notes,
            Table(("", name, "95 % interval", ""), rows, frozenset({1, 2})),
            _shown(name, quality_plot(report)),
        )

    def _corrections(self) -> Section:
        found = self.run.report.corrections
        rows = _measured(found)
        name = metric_name(found.tuned.name)
        note = (
            f"{name} on {found.tuned.sample_size:,} corrections that were held back. People correct wrong answers, so "
            "the version that gave them does badly here."
        )
        table = Table(("", name, "95 % interval", ""), rows, frozenset({1, 2}))
        return Section("Corrections by people", [note], table, _shown(name, corrections_plot(found)))

    def _slices(self) -> Section:
        rows = []
        for row in slice_rows(self.run.report):
            cells = [row.name, f"{row.examples:,}"]
            if row.comparison is None:
                rows.append([*cells, "too few to measure", "", "", ""])
                continue
            tuned = row.comparison.tuned
            gain = "" if row.gain is None else f"{row.gain.metric.value:+.3f} {row.gain.words}"
            rows.append([*cells, f"{tuned.value:.3f}", interval(tuned), gain, row.gain.status.word if row.gain else ""])
        name = metric_name(self.run.report.tuned.name)
        table = Table(("", "records", name, "95 % interval", "difference", ""), rows, frozenset({1, 2, 3}))
        return Section("Parts of the hold-out", (), table)

    def _builds(self) -> Section:
        report = self.run.report
        variants, figures = report.variants, report.figures
        speed = "tokens a second" if variants[0].tokens_per_second else "texts a second"
        columns = ["build", metric_name(variants[0].quality.name), "95 % interval", speed, "latency", "size"]
        has_loss = any(each.HasField("loss_increase") for each in variants)
        kinds = [kind for kind in _SAME if any(f"{kind}_{each.precision}" in figures for each in variants)]
        columns += (["cross entropy to trained"] if has_loss else []) + [_PARITY[kind] for kind in kinds]
        rows = []
        for each in variants:
            latency = each.time_to_first_token_ms or each.latency_p50_ms
            row = [self._build_name(each), f"{each.quality.value:.3f}", interval(each.quality)]
            row += [rate(_speed(each)), f"{latency:.1f} ms" if latency else "", size(each.size_bytes)]
            if has_loss:
                row.append(f"{each.loss_increase.value:+.1%}" if each.HasField("loss_increase") else "")
            found = [figures.get(f"{kind}_{each.precision}") for kind in kinds]
            row += [
                "" if value is None else f"{value:.1%}" if kind == _SAME[0] else f"{value:.6f}"
                for kind, value in zip(kinds, found, strict=True)
            ]
            rows.append(row)
        notes = [
            "Each was measured by the runtime that serves it, one request at a time on the machine that trained."
            + (" Latency is that to the first token." if variants[0].time_to_first_token_ms else "")
        ]
        marks = [
            BuildMark(each.precision, _speed(each), each.quality.value, each.size_bytes, self._tone(each))
            for each in variants
        ]
        plots = [("Builds by speed and quality, as large as their files", front(marks, speed, columns[1]))]
        return Section(
            "Builds", notes, Table(columns, rows, frozenset(range(1, len(columns)))), plots if len(marks) > 1 else []
        )

    def _build_name(self, variant: Variant) -> str:
        return f"{variant.precision}, published" if self._published(variant) else variant.precision

    def _tone(self, variant: Variant) -> str:
        return "good" if self._published(variant) else "idle"

    def _published(self, variant: Variant) -> bool:
        return self.version is not None and variant.digest == self.version.digest

    def _examples(self) -> Section:
        rows = [[each.input, each.reference, each.base, each.tuned] for each in self.run.report.examples[:_EXAMPLES]]
        columns = ("text", "wanted", "base model", "this model")
        return Section("Examples", ["Of the hold-out."], Table(columns, rows))


_PARITY = {_SAME[0]: "same answers as trained", _SAME[1]: "cosine to trained"}


def _speed(variant: Variant) -> float:
    return variant.tokens_per_second or variant.examples_per_second


def _measured(found: Report | Comparison) -> list[list[str]]:
    """The models that were measured."""
    models = (("base model", found.base), ("champion", found.champion), ("this model", found.tuned))
    return [[words, f"{each.value:.3f}", interval(each), ""] for words, each in models if each.sample_size]


def _shown(caption: str, plot: Markup) -> list[tuple[str, Markup]]:
    """A plot with its caption; nothing where there is nothing to draw."""
    return [(caption, plot)] if plot else []


def _options(message: Message) -> str:
    """The fields of a task or method that were given."""
    given = MessageToDict(message, preserving_proto_field_name=True)
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _name(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower()


def _moment(stamp: Timestamp) -> str:
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M} UTC"
