"""A run that trains an encoder to assign any number of labels to texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from services.kit.errors import FailedPreconditionError
from services.kit.labels import THRESHOLD, labels_answer, probabilities
from services.training.adapters.job import Job, write_json
from services.training.domain.tasks import MultiLabelClassificationTask
from services.training.engine.labels import best_thresholds, calibrates, labels_of_row, lift
from services.training.engine.metrics import Score, f1_of, label_counts, label_metrics, measured
from services.training.engine.tasks import MultiLabelObjective
from services.training.worker.champion import Rows
from services.training.worker.encoders import EncoderRun, Tokens
from services.training.worker.phases import Material, kept

if TYPE_CHECKING:
    import numpy as np

Labels = list[str]
"""The labels of a text."""


class MultiLabelClassificationRun(EncoderRun[Labels]):
    """An answer is the labels of a text.

    The threshold of each label is chosen on training records that are not learnt, and goes into the model: the bias of
    the label's logit is moved, so that its score is 0.5 there (docs/adr/0065-thresholds-in-the-model.md).
    """

    INDEPENDENT: ClassVar[bool] = True
    MEASURE = f1_of("micro_f1")

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        task = job.spec.task
        assert isinstance(task, MultiLabelClassificationTask)
        self._column, self._separator = task.labels_field, task.separator
        # Read now, so that a broken record ends the run before it trains.
        for rows in (material.train, material.holdout, material.corrections):
            self._labels(rows)
        self._calibration = [row for row in material.train if calibrates(row, task.calibration_share)]
        self._learnt = [row for row in material.train if not calibrates(row, task.calibration_share)]
        labels = sorted({label for found in self._labels(self._learnt) for label in found})
        if not labels:
            raise FailedPreconditionError(
                f"spec.multi_label_classification.labels_field: column {self._column!r} has no label in the "
                f"{len(self._learnt)} records to learn from.",
                reason="LABELS_MISSING",
                metadata={"column": self._column},
            )
        self._thresholds = job.folder / "eval" / "thresholds.json"
        super().__init__(job, material, should_stop, labels)

    @property
    def learnt(self) -> Rows:
        """See `EncoderRun`."""
        return self._learnt

    def objective(self, tokens: Sequence[Tokens]) -> MultiLabelObjective:
        """See `EncoderRun`."""
        index = {label: number for number, label in enumerate(self.outputs)}
        wanted = [[index[label] for label in labels] for labels in self._labels(self._learnt)]
        return MultiLabelObjective([text.ids for text in tokens], wanted, self.material.tokenizer.pad_token_id)

    def settle(self, model: Any) -> None:
        """Chooses the thresholds and moves the logits, see the class."""
        import numpy as np
        import torch

        thresholds = [THRESHOLD] * len(self.outputs)
        if self._calibration:
            scores = probabilities(np.stack(self.logits_of(model, self._calibration)))
            wanted = np.array(
                [[label in labels for label in self.outputs] for labels in self._labels(self._calibration)]
            )
            thresholds = best_thresholds(scores, wanted)
        write_json(self._thresholds, thresholds)
        with torch.no_grad():
            model.head.bias -= torch.tensor(lift(thresholds), device=model.head.bias.device)

    def described(self) -> Mapping[str, Any]:
        """The probabilities that are a score of 0.5 now, in the order of the labels."""
        return {"thresholds": kept(self._thresholds, list)}

    def chosen(self, logits: np.ndarray[Any, Any]) -> Any:
        """See `EncoderRun`: 1 for each label that is assigned, 0 for the others."""
        return (probabilities(logits) >= THRESHOLD).astype(int).tolist()

    def named(self, found: Sequence[Any], outputs: Sequence[str], tokens: Sequence[Tokens]) -> list[Labels]:
        """See `EncoderRun`."""
        return [[label for label, is_there in zip(outputs, answer, strict=True) if is_there] for answer in found]

    def compared_as(self, answer: Labels) -> str:
        """See `EncoderRun`."""
        return labels_answer(answer)

    def scored(self, rows: Rows, answers: Sequence[Labels]) -> list[Score]:
        """See `TaskRun`."""
        return [*label_counts(self._labels(rows), answers)]

    def figures(self, tuned: Sequence[Labels]) -> Mapping[str, float]:
        """The other metrics with their intervals, what always giving the same labels would reach, and the calibration.

        The same labels are as many of the commonest of the training records as make the best micro F1 on those.
        """
        wanted = self._labels(self.material.holdout)
        metrics = label_metrics(wanted, tuned)
        thresholds: list[float] = kept(self._thresholds, list)
        always = [_commonest(self._labels(self._learnt))] * len(wanted)
        return {
            **metrics["macro_f1"].figures(),
            **metrics["subset_accuracy"].figures(),
            "constant_micro_f1": measured(self.MEASURE, label_counts(wanted, always)).value,
            "labels_per_text": sum(map(len, wanted)) / len(wanted),
            "calibration_examples": float(len(self._calibration)),
            "moved_thresholds": float(sum(threshold != THRESHOLD for threshold in thresholds)),
        }

    def ranked(self, tuned: Sequence[Labels], base: Sequence[Labels] | None) -> list[int]:
        """Those with the most wrong and missing labels first."""
        wanted = self._labels(self.material.holdout)
        return sorted(range(len(wanted)), key=lambda at: -len(set(wanted[at]) ^ set(tuned[at])))

    def reference(self, row: Mapping[str, str]) -> str:
        """See `TaskRun`."""
        return self.shown(row, labels_of_row(row, self._column, self._separator))

    def shown(self, row: Mapping[str, str], answer: Labels) -> str:
        """See `TaskRun`."""
        return ", ".join(answer)

    def _labels(self, rows: Rows) -> list[Labels]:
        return [labels_of_row(row, self._column, self._separator) for row in rows]


def _commonest(labels: Sequence[Labels]) -> Labels:
    counts = Counter(label for found in labels for label in found)
    order = [label for label, _ in counts.most_common()]
    total = sum(counts.values())

    def micro_f1(count: int) -> float:
        return 2 * sum(counts[label] for label in order[:count]) / (count * len(labels) + total)

    return order[: max(range(1, len(order) + 1), key=micro_f1)]


RUN = MultiLabelClassificationRun
