"""`pipelines/entities.yaml`: tagged news in, a served model that finds names out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Mesh

PIPELINE = str(ROOT / "pipelines" / "entities.yaml")


@pytest.mark.slow
def test_names_are_found_in_a_text_that_was_never_seen(mesh: Mesh) -> None:
    cycle: dict[str, Any] = mesh.json("run", PIPELINE)
    assert cycle["state"] == "STATE_SUCCEEDED"
    tuned = cycle["report"]["tuned"]
    assert tuned["name"] == "entity_f1"
    assert tuned["ci_low"] > cycle["report"]["figures"]["lexicon_entity_f1"], "better than remembering names"
    text = "外交部长王小明昨天在巴黎会见了法国总统"
    [found] = mesh.json("predict", "entities", text)["predictions"]
    spans = {text[span.get("start", 0) : span["end"]]: span["label"] for span in found["spans"]}
    assert spans["巴黎"] == "LOC"
    assert spans["法国"] == "LOC"
