"""Presidio, installed apart and run as a process: texts in as JSON, spans out.

With its pattern recognizers for English. They read the words of a text from spaCy; its models are on no package index,
so that a blank pipeline with lemmas from a table takes their place, and names are not recognized.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.peers import installed
from services.masking.personal_data import Span

PACKAGES: Final = ("presidio-analyzer==2.2.366", "spacy-lookups-data==1.0.5")
THRESHOLD: Final = 0.35
"""The least score of its own demo."""
_KINDS: Final = {
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "email",
    "US_SSN": "id_card",
    "UK_NINO": "id_card",
    "CREDIT_CARD": "bank_card",
    "IBAN_CODE": "bank_card",
    "IP_ADDRESS": "ip",
    "US_PASSPORT": "passport",
    "UK_NHS": "medical_record",
}
KINDS: Final = tuple(sorted(set(_KINDS.values())))
_PROGRAM: Final = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
import spacy
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import SpacyNlpEngine
class Blank(SpacyNlpEngine):
    def load(self):
        nlp = spacy.blank("en")
        nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
        nlp.initialize()
        self.nlp = {"en": nlp}
engine = Blank()
engine.load()
registry = RecognizerRegistry(supported_languages=["en"])
registry.load_predefined_recognizers(languages=["en"], nlp_engine=engine)
analyzer = AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])
threshold, kinds, texts = json.load(sys.stdin)
analyzer.analyze("My phone number is 415-555-0132.", "en")
begin = time.process_time()
found = [analyzer.analyze(text, "en", score_threshold=threshold, entities=kinds) for text in texts]
seconds = time.process_time() - begin
answers = [[[each.start, each.end, each.entity_type, each.score] for each in hits] for hits in found]
json.dump([seconds, answers], sys.stdout)
"""


def found(texts: Sequence[str]) -> tuple[list[list[Span]], float]:
    """What it finds in each text of our kinds, and its processor seconds; of spans that overlap, the surest."""
    place = installed("presidio", PACKAGES)
    result = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM],
        input=json.dumps([THRESHOLD, list(_KINDS), list(texts)]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(place)},
    )
    seconds, answers = json.loads(result.stdout)
    return [_best(hits) for hits in answers], float(seconds)


def _best(hits: Sequence[tuple[int, int, str, float]]) -> list[Span]:
    kept: list[Span] = []
    for start, end, entity, _ in sorted(hits, key=lambda hit: (-hit[3], hit[0] - hit[1])):
        if all(end <= other.start or other.end <= start for other in kept):
            kept.append(Span(start, end, _KINDS[entity]))
    return sorted(kept, key=lambda span: span.start)
