"""`pipelines/search.yaml`: news in, a served model that finds articles by their headlines out."""

from __future__ import annotations

from typing import Any

import pytest
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import inference_service_pb2_grpc as stubs

from tests.e2e.conftest import ROOT, Mesh

PIPELINE = str(ROOT / "pipelines" / "search.yaml")
_HEADLINES = ["Shares fall as oil price climbs", "Striker to miss cup final through injury"]
_TEXTS = [
    "The forward damaged his knee in training on Tuesday and will not play on Saturday, his club said.",
    "London's index lost two percent on Monday after crude rose above fifty dollars a barrel.",
]


@pytest.mark.slow
def test_an_article_is_found_by_its_headline(mesh: Mesh) -> None:
    cycle: dict[str, Any] = mesh.json("run", PIPELINE)
    assert cycle["state"] == "STATE_SUCCEEDED"
    report = cycle["report"]
    assert report["tuned"]["name"] == "mrr_at_10"
    assert report["tuned"]["value"] >= report["base"]["value"]
    with mesh.channel() as channel:
        answer = stubs.InferenceServiceStub(channel).Embed(
            pb.EmbedRequest(model="models/search", texts=[*_HEADLINES, *_TEXTS]), metadata=mesh.metadata, timeout=60
        )
    vectors = [item.values for item in answer.embeddings]
    near = [[sum(a * b for a, b in zip(text, head, strict=True)) for head in vectors[:2]] for text in vectors[2:]]
    assert near[0][1] > near[0][0]
    assert near[1][0] > near[1][1]
