"""Small base models and snapshots, made in seconds: real architectures and tokenizers with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.models import make_language_model

GOOD, BAD = ("good", "lovely", "clean", "kind"), ("bad", "awful", "dirty", "rude")
_NEUTRAL = ("the", "room", "was", "and", "staff", "very", "hotel", "again")


def make_writer(folder: Path) -> Path:
    """A language model that knows the words of `write_reviews`."""
    return make_language_model(folder, [" ".join((*GOOD, *BAD, *_NEUTRAL))])


def make_encoder(folder: Path) -> Path:
    """A BERT of two layers that knows the words of `write_reviews`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *_NEUTRAL]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    make_tokenizer: Any = PreTrainedTokenizerFast
    fast = make_tokenizer(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_reviews(folder: Path) -> Path:
    """A snapshot whose label and headline follow from one word of the text."""
    rows = []
    for number in range(96):
        label, words = (("positive", GOOD), ("negative", BAD))[number % 2]
        word, rest = words[number // 2 % 4], _NEUTRAL[number % 8 :] + _NEUTRAL[: number % 8]
        rows.append(
            {
                "record_id": f"rec_{number:03}",
                "source": "test",
                "text": " ".join((*rest[:4], word, *rest[4:])),
                "label": label,
                "headline": f"{word} hotel",
            }
        )
    return write_snapshot(folder, rows[24:], rows[:24])


def write_marked(folder: Path) -> Path:
    """A snapshot whose spans are the good and bad words of its texts."""
    rows = []
    for number in range(128):
        words = [_NEUTRAL[(number * 3 + at) % 8] for at in range(6)]
        marked = {1 + number % 5: (*GOOD, *BAD)[number % 8]}
        if number % 3 == 0:
            marked[0] = (*BAD, *GOOD)[number // 3 % 8]
        words = [marked.get(at, word) for at, word in enumerate(words)]
        starts = [sum(len(word) + 1 for word in words[:at]) for at in range(len(words))]
        spans = [
            {"start": start, "end": start + len(word), "label": "GOOD" if word in GOOD else "BAD"}
            for start, word in zip(starts, words, strict=True)
            if word in GOOD + BAD
        ]
        text = " ".join(words)
        rows.append({"record_id": f"rec_{number:03}", "source": "test", "text": text, "spans": json.dumps(spans)})
    return write_snapshot(folder, rows[24:], rows[:24])


def write_titled(folder: Path) -> Path:
    """A snapshot whose titles, and some hard negatives, consist of the two good or bad words of each text."""
    pairs = list(combinations((*GOOD, *BAD), 2))
    rows = []
    for number in range(112):
        pair = pairs[number * 5 % len(pairs)]
        words = [_NEUTRAL[(number * 3 + at) % 8] for at in range(6)]
        words[number % 3] = pair[0]
        words[3 + number % 2] = pair[1]
        rows.append(
            {
                "record_id": f"rec_{number:03}",
                "source": "test",
                "text": " ".join(words),
                "title": " ".join(pair),
                "other": "" if number % 4 else " ".join((pair[0], pairs[(number + 9) % len(pairs)][1])),
            }
        )
    return write_snapshot(folder, rows[28:], rows[:28])


def write_tagged(folder: Path) -> Path:
    """A snapshot whose labels, any number of a text, follow from its words; a label of a few records is rare."""
    rows = []
    for number in range(240):
        words = [_NEUTRAL[(number * 3 + at) % 8] for at in range(6)]
        labels = []
        for at, (label, word) in enumerate((("praise", GOOD[number % 4]), ("complaint", BAD[number // 2 % 4]))):
            if (number * 7 // 3 + at * 5) % (2 + at) == 0:
                words[2 * at] = word
                labels.append(label)
        if number % 6 == 1:
            words[5] = "again"
        labels += ["repeated"] if "again" in words else []
        rows.append(
            {
                "record_id": f"rec_{number:03}",
                "source": "test",
                "text": " ".join(words),
                "labels": json.dumps(labels),
                "tags": "; ".join(labels),
            }
        )
    return write_snapshot(folder, rows[40:], rows[:40])


STARS = ("1", "2", "3", "4", "5")


def write_rated(folder: Path) -> Path:
    """A snapshot whose label, of five in their order, is how many good words a text has more than bad ones."""
    rows = []
    for number in range(200):
        stars = number % 5
        words = [_NEUTRAL[(number * 3 + at) % 8] for at in range(6)]
        for at in range(4):
            words[at] = (GOOD if at < stars else BAD)[(number // 5 + at) % 4]
        rows.append({"record_id": f"rec_{number:03}", "source": "test", "text": " ".join(words), "stars": STARS[stars]})
    return write_snapshot(folder, rows[40:], rows[:40])


def write_preferences(folder: Path) -> Path:
    """Answers that say the word of the text were chosen; others were rejected, or one rating was given."""
    rows = []
    for number in range(48):
        word = (*GOOD, *BAD)[number % 8]
        other = (*GOOD, *BAD)[(number + 3) % 8]
        good = number % 2 == 0
        rows.append(
            {
                "record_id": f"rec_{number:03}",
                "text": f"the room was {word}",
                "chosen": f"{word} hotel",
                "rejected": "" if number == 47 else f"{other} staff",
                "answer": f"{word} hotel" if good else f"{other} staff",
                "rating": "1" if good else "-1",
            }
        )
    return write_snapshot(folder, rows[12:], rows[:12])


def write_snapshot(folder: Path, train: Sequence[dict[str, str]], holdout: Sequence[dict[str, str]]) -> Path:
    """A snapshot as cleaning lays it out, as far as training reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(train)), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(list(holdout)), folder / "holdout.parquet")
    return folder
