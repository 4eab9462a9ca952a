"""People's Daily of January 1998 as people tagged it: words with parts of speech, some of which are names.

Its rights are not settled: it is read from a package, and never stored in this repository.
"""

from __future__ import annotations

from typing import Any

_LABELS = {"nr": "PER", "ns": "LOC", "nt": "ORG"}


def annotated(line: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a line such as `江/nr  泽民/nr  在/p  北京/ns`, and its names.

    The corpus parts a Chinese name into family and given name, so neighbouring `nr` are one person: at most two, and
    the first of them of one or two characters. Places and organisations stay as they are tagged.
    """
    spans: list[dict[str, Any]] = []
    text, joins = "", False
    for item in line.split():
        word, _, tag = item.rpartition("/")
        label = _LABELS.get(tag)
        start, text = len(text), text + word
        if label is None or not word:
            joins = False
        elif joins and tag == "nr":
            spans[-1]["end"], joins = len(text), False
        else:
            spans.append({"start": start, "end": len(text), "label": label})
            joins = tag == "nr" and len(word) <= 2
    return text, spans
