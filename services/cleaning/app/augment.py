"""Adds variants to the training part of a snapshot, and drops those that could teach something wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from services.cleaning.app.ports import SnapshotRow
from services.cleaning.domain.augmentation import OPERATOR_COLUMN, PARENT_COLUMN, variant_id
from services.cleaning.domain.record import RecordKey
from services.cleaning.engine.augmentation import Augmentation, Draft, server_of
from services.cleaning.engine.contamination import near_to
from services.cleaning.engine.content_keys import content_keys
from services.cleaning.engine.limits import MAX_TEXT_BYTES, utf8_size
from services.cleaning.engine.operator import SetRecord
from services.cleaning.engine.rewriter import (
    MAX_PARENT_CHARS,
    Answer,
    Answers,
    Comparison,
    Labelling,
    Rewriter,
    ServedModel,
)
from services.cleaning.engine.words import kept_parts
from services.kit.ids import sha256_hex
from services.kit.network_rules import is_this_machine
from services.masking.masks import DEFAULT_MASKS, mask_of

COLUMNS = (PARENT_COLUMN, OPERATOR_COLUMN)
"""Columns of an augmented data set; empty of records that are not variants."""

# Why there is no variant: no augmenter can change the text; another record or variant has this text; the variant, or
# already its parent, is a near duplicate of a text of the hold-out; a collected record has its id; it is too large; the
# augmenter has a bug.
_UNCHANGED, _DUPLICATE, _NEAR, _PARENT_NEAR = "nothing_to_change", "duplicate", "near_holdout", "parent_near_holdout"
_TAKEN, _TOO_LARGE, _FAILED = "id_taken", "too_large", "augmenter_failed"
# Of those that a model writes: the parent is private, or has personal data that no operator has masked, or is too long
# to be sent; the limit of questions is reached; the answer lacks a placeholder, a number or a term, or has another one.
# An answer that cannot be used has a reason of its own.
_PRIVATE, _PERSONAL, _TOO_LONG, _OVER_LIMIT = "private", "personal_data", "too_long_to_ask", "over_max_calls"
_KEPT_CHANGED = "kept_part_changed"
# Of those that models check: the meaning is too far from the parent's; the label is not the parent's, or it has none.
_DRIFTED, _LABEL_CHANGED, _NO_LABEL = "drifted", "label_changed", "no_label"


_mask = mask_of(DEFAULT_MASKS)


@dataclass(frozen=True, slots=True)
class Variants:
    """Rows that are added, and how many variants were dropped for which reason."""

    rows: Sequence[SnapshotRow] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by augmenter."""
        return dict(sorted(Counter(row.attributes[OPERATOR_COLUMN] for row in self.rows).items()))


@dataclass(slots=True)
class _Wanted:
    """A variant of a parent, of which only the text may be missing."""

    parent: SnapshotRow
    draft: Draft
    text: str

    @property
    def key(self) -> RecordKey:
        return self.parent.source, self.parent.record_id


def make_variants(
    augmentation: Augmentation,
    train: Sequence[SnapshotRow],
    unseen: Sequence[str],
    records: Collection[SetRecord],
    answers: Answers | None = None,
    private: Collection[RecordKey] = (),
) -> Variants:
    """Makes the variants of the training part; the same arguments give the same ones.

    Args:
        augmentation: how.
        train: the training part.
        unseen: texts that are measured on; neither what resembles one nor its variants are learnt.
        records: all that passed the operators on single records; no variant may have the text of one.
        answers: of models; what is missing there has to be asked, and everything made again.
        private: records whose texts may not go to another machine.
    """
    dropped = Counter[str]()
    parents = [row for row in train if augmentation.chosen((row.source, row.record_id))]
    close = near_to(unseen, [row.text for row in parents])
    ids = {(record.source, record.record_id) for record in records}
    wanted: list[_Wanted] = []
    for at, parent in enumerate(parents):
        if at in close:
            dropped[_PARENT_NEAR] += augmentation.spec.per_record
            continue
        for draft in augmentation.drafts((parent.source, parent.record_id), parent.text):
            if draft.maker is None:
                dropped[_UNCHANGED] += 1
            elif (parent.source, variant_id(parent.record_id, draft.number)) in ids:
                dropped[_TAKEN] += 1
            else:
                wanted.append(_Wanted(parent, draft, draft.text))
    answers = answers if answers is not None else Answers()
    wanted = _written(augmentation, wanted, answers, private, dropped)
    if answers.missing:
        # What is a duplicate, and so is not checked, is known once every text is there.
        return Variants()
    origin: dict[RecordKey, SnapshotRow] = {}
    made: list[SnapshotRow] = []
    for each in wanted:
        parent, maker = each.parent, each.draft.maker
        assert maker is not None
        if not each.text:
            dropped[_FAILED] += 1
        elif utf8_size(each.text) > MAX_TEXT_BYTES:
            dropped[_TOO_LARGE] += 1
        else:
            marks = {PARENT_COLUMN: parent.record_id, OPERATOR_COLUMN: maker.name}
            name = variant_id(parent.record_id, each.draft.number)
            made.append(SnapshotRow(name, parent.source, each.text, {**parent.attributes, **marks}))
            origin[parent.source, name] = parent
    # The texts of rejected records count, too: one of another label may have been dropped as a conflict.
    known = {*content_keys([record.text for record in records]), *content_keys(unseen)}
    fresh: list[SnapshotRow] = []
    for row, key in zip(made, content_keys([row.text for row in made]), strict=True):
        if key in known:
            dropped[_DUPLICATE] += 1
        else:
            known.add(key)
            fresh.append(row)
    close = near_to(unseen, [row.text for row in fresh])
    if close:
        dropped[_NEAR] += len(close)
    kept: list[SnapshotRow] = []
    for row in (row for at, row in enumerate(fresh) if at not in close):
        why = _failed_check(augmentation, row, origin[row.source, row.record_id], answers, private)
        if why == "":
            kept.append(row)
        elif why is not None:
            dropped[why] += 1
    return Variants(kept, dict(sorted(dropped.items())))


def _failed_check(
    augmentation: Augmentation,
    row: SnapshotRow,
    parent: SnapshotRow,
    answers: Answers,
    private: Collection[RecordKey],
) -> str | None:
    """Why a variant is dropped by what models say of it; empty if it is not, None if one has still to be asked."""
    key = parent.source, parent.record_id
    if (similarity := augmentation.spec.similarity) is not None:
        encoder = server_of(similarity)
        if why := _not_sent(encoder, similarity.private or key not in private, parent.text, row.text):
            return why
        answer = answers.of(Comparison(encoder, parent.text, row.text, key))
        if answer is None or answer.dropped:
            return answer.dropped if answer is not None else None
        if float(answer.text) < similarity.min_cosine:
            return _DRIFTED
    if (labels := augmentation.spec.labels) is not None:
        classifier, label = server_of(labels), parent.attributes.get(labels.attribute)
        if not label:
            return _NO_LABEL
        if why := _not_sent(classifier, labels.private or key not in private, row.text):
            return why
        answer = answers.of(Labelling(classifier, row.text, key))
        if answer is None or answer.dropped:
            return answer.dropped if answer is not None else None
        if answer.text != label:
            return _LABEL_CHANGED
    return ""


def _written(
    augmentation: Augmentation,
    wanted: Sequence[_Wanted],
    answers: Answers,
    private: Collection[RecordKey],
    dropped: Counter[str],
) -> list[_Wanted]:
    """The variants with the texts that models wrote, in the same order."""
    ready: dict[int, _Wanted] = {}
    by_rewriter: dict[int, list[int]] = {}
    for at, each in enumerate(wanted):
        maker = each.draft.maker
        if not isinstance(maker, Rewriter):
            ready[at] = each
        elif maker.server is not None and (
            why := _not_sent(maker.server, maker.params.private or each.key not in private, each.parent.text)
        ):
            dropped[why] += 1
        else:
            by_rewriter.setdefault(augmentation.makers.index(maker), []).append(at)
    for place, group in by_rewriter.items():
        rewriter = augmentation.makers[place]
        assert isinstance(rewriter, Rewriter)
        # The limit counts what a version needs, also what was answered before: equal content gives equal variants.
        limit = rewriter.params.max_calls // rewriter.steps
        order = sorted(group, key=lambda at: _lot(augmentation.spec.seed, wanted[at]))
        if len(order) > limit:
            dropped[_OVER_LIMIT] += len(order) - limit
        for at in order[:limit]:
            each = wanted[at]
            answer = _answer(rewriter, each, augmentation.spec.seed, answers)
            if answer is None:
                continue
            why = answer.dropped
            if not why and kept_parts(answer.text, augmentation.terms) != kept_parts(
                each.parent.text, augmentation.terms
            ):
                why = _KEPT_CHANGED
            if why:
                dropped[why] += 1
            else:
                each.text = answer.text
                ready[at] = each
    return [ready[at] for at in sorted(ready)]


def _not_sent(server: ServedModel, may_leave: bool, *texts: str) -> str:
    """Why texts are not sent to a model; empty if they are.

    Args:
        server: the model.
        may_leave: whether they may go to another machine.
        texts: what would be sent.
    """
    if any(len(text) > MAX_PARENT_CHARS for text in texts):
        return _TOO_LONG
    if not may_leave and not is_this_machine(server.address):
        return _PRIVATE
    # Whatever the recipe masks or leaves.
    return _PERSONAL if any(_mask(text) != text for text in texts) else ""


def _answer(rewriter: Rewriter[Any], wanted: _Wanted, seed: int, answers: Answers) -> Answer | None:
    """The answer to the last question of a variant, or the one that ends it; None if one has still to be asked."""
    answer = Answer(wanted.parent.text)
    for step in range(rewriter.steps):
        found = answers.of(rewriter.question(step, answer.text, wanted.key, wanted.draft.number, seed))
        if found is None or found.dropped:
            return found
        answer = found
    return answer


def _lot(seed: int, wanted: _Wanted) -> str:
    return sha256_hex("limit", str(seed), *wanted.key, str(wanted.draft.number))


def described(augmentation: Augmentation, variants: Variants) -> dict[str, Any]:
    """What the manifest says of it."""
    spec = augmentation.spec
    return {
        "digest": augmentation.digest,
        "operators": list(augmentation.canonical),
        "seed": spec.seed,
        "per_record": spec.per_record,
        "rate": spec.rate,
        "keep": list(spec.keep),
        **({"similarity": asdict(spec.similarity)} if spec.similarity else {}),
        **({"labels": asdict(spec.labels)} if spec.labels else {}),
        "variants": variants.counts,
        "dropped": dict(variants.dropped),
    }
