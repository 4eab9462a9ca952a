"""What feedback does to a snapshot. Its records never enter the hold-out and never come from it.

What falls on the hold-out's side by the hash of its content is set aside: it is measured on, and never learnt. Of the
rest a correction takes the place of source records with the same content, and gives way to everything else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cleaning.domain.dataset import DatasetSpec, NewLabels, dataset_id
from services.cleaning.domain.record import Rejection
from services.cleaning.domain.split import position
from services.cleaning.engine.contamination import near_to
from services.cleaning.engine.content_keys import content_keys
from services.cleaning.engine.operator import SetRecord

COLUMNS = (
    "feedback_kind",
    "feedback_weight",
    "feedback_person",
    "feedback_version",
    "feedback",
    "rejected_answer",
)
"""Columns of a data set with feedback: how it was judged, how often it counts, who said so (a pseudonym), the version
that had answered, the judgement, and what a correction rejects."""
CORRECTION = "correction"
_SUPERSEDED = "superseded_by_feedback"

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SetAside:
    """Records of feedback kept for evaluation, and records that are dropped: feedback, or what feedback replaces."""

    held_back: Mapping[Key, SetRecord] = field(default_factory=dict)
    rejections: Mapping[Key, Rejection] = field(default_factory=dict)


def set_aside(dataset: str, spec: DatasetSpec, alive: Mapping[Key, SetRecord]) -> SetAside:
    """Decides about the records of feedback before the operators on the whole set see any.

    Args:
        dataset: `datasets/{dataset}`; it salts the split.
        spec: names the sources of feedback.
        alive: every record that the operators on single records kept.
    """
    if not spec.feedback_sources:
        return SetAside()
    contents = dict(zip(alive, content_keys([record.text for record in alive.values()]), strict=True))
    feedback = {key: record for key, record in alive.items() if record.feedback}
    rejections = _unknown_labels(alive, feedback, spec.new_labels)
    by_content: dict[str, list[Key]] = defaultdict(list)
    for key in feedback:
        if key not in rejections:
            by_content[contents[key]].append(key)
    collected: dict[str, list[Key]] = defaultdict(list)
    for key, content in contents.items():
        if content in by_content and key not in feedback:
            collected[content].append(key)
    held_back: dict[Key, SetRecord] = {}
    for content, keys in by_content.items():
        # A correction before an acceptance, the newest before older ones.
        first, *others = sorted(keys, key=lambda key: _rank(feedback[key]), reverse=True)
        rejections |= {key: Rejection(_SUPERSEDED, f"by={feedback[first].name}") for key in others}
        if position(dataset_id(dataset), content) < spec.holdout.fraction:
            held_back[first] = feedback[first]
            continue
        if feedback[first].attributes.get("feedback_kind") == CORRECTION:
            rejections |= {key: Rejection(_SUPERSEDED, f"by={feedback[first].name}") for key in collected[content]}
    return SetAside(held_back, rejections)


def near_holdout(train: Mapping[Key, SetRecord], holdout: Sequence[str]) -> Mapping[Key, Rejection]:
    """Records of feedback in the training set that are near duplicates of a text of the hold-out."""
    feedback = {key: record for key, record in train.items() if record.feedback}
    keys = list(feedback)
    return {
        keys[at]: Rejection("near_holdout", f"jaccard={similarity:.3f}")
        for at, similarity in near_to(holdout, [record.text for record in feedback.values()]).items()
    }


def counts(train: Sequence[SetRecord], held_back: int, rejected: int) -> dict[str, int]:
    """What became of the records of feedback, for the version and its card."""
    mine = [record.attributes for record in train if record.feedback]
    kinds = Counter(attributes.get("feedback_kind", "") for attributes in mine)
    people = {attributes.get("feedback_person", "") for attributes in mine}
    return {
        "correction": kinds[CORRECTION],
        "accepted": kinds["accepted"],
        "people": len(people),
        "held_back": held_back,
        "rejected": rejected,
    }


def card(train: Sequence[SetRecord]) -> dict[str, Any]:
    """Who taught, and which versions had answered, in records for training."""
    mine = [record.attributes for record in train if record.feedback]
    return {
        "by_person": dict(sorted(Counter(item.get("feedback_person", "") for item in mine).items())),
        "by_version": dict(sorted(Counter(item.get("feedback_version", "") for item in mine).items())),
    }


def _unknown_labels(
    alive: Mapping[Key, SetRecord], feedback: Mapping[Key, SetRecord], new: NewLabels | None
) -> dict[Key, Rejection]:
    """Feedback with a label that no source record has, and that too few people gave to be a class that is new.

    A misspelt label must not become a class of the model.
    """
    known: dict[str, set[str]] = {}
    unknown: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for key, record in feedback.items():
        name = record.attributes.get("feedback_label_field", "")
        if not name:
            continue
        if name not in known:
            known[name] = {other.attributes.get(name, "") for other in alive.values() if not other.feedback}
        label = record.attributes.get(name, "")
        if label not in known[name]:
            unknown[name, label].append(key)
    found: dict[Key, Rejection] = {}
    for (name, label), keys in unknown.items():
        people = len({feedback[key].attributes.get("feedback_person", "") for key in keys})
        if label and new is not None and len(keys) >= new.min_records and people >= new.min_people:
            continue
        why = Rejection("unknown_label", f"field={name} labels={len(known[name])} records={len(keys)} people={people}")
        found |= dict.fromkeys(keys, why)
    return found


def _rank(record: SetRecord) -> tuple[bool, str, str]:
    kind, time = record.attributes.get("feedback_kind"), record.attributes.get("feedback_time", "")
    return kind == CORRECTION, time, record.name
