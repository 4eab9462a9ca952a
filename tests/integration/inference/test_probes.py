"""A build is published only if it answers on Triton as it did when it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from tidemill.inference.v1 import model_pb2

from services.kit.probes import TEXTS, Probes, spans_answer
from services.training.adapters import language_builds
from services.training.domain.tasks import GenerationTask
from services.training.engine.prompts import prompts_of
from services.training.engine.tasks import Pair
from tests.integration.inference.builds import TEMPLATE, finish_generator, make_classifier, make_generator
from tests.integration.inference.conftest import BuildFolder, Builds, InferenceProcess
from tests.integration.inference.test_service import reason_of

pytestmark = pytest.mark.real

SERVING = model_pb2.ModelVersion.STATE_SERVING
MARKS = Probes(("good room", "bad"), (spans_answer([(0, 4, "GOOD")]), spans_answer([(0, 3, "BAD")])))
LABELS = Probes(("good room", "awful bad room"), ("positive", "negative"))


def is_published(inference: InferenceProcess, model: str, folder: Path, digest: str) -> bool:
    return bool(inference.publish(model, BuildFolder(folder, digest)).model_version.state == SERVING)


def refusal(inference: InferenceProcess, model: str, build: BuildFolder) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        inference.publish(model, build)
    error: Any = refused.value
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "ANSWERS_DIFFER")
    return str(error.details())


def test_an_encoder_that_answers_otherwise_is_refused(inference: InferenceProcess, builds: Builds, model: str) -> None:
    right = builds.root / model
    assert is_published(inference, model, right, make_classifier(right, probes=LABELS))
    turned = builds.root / f"{model}-turned"
    details = refusal(inference, model, BuildFolder(turned, make_classifier(turned, weight=-2.0, probes=LABELS)))
    assert "2 of 2 probes are answered otherwise" in details
    assert "'good room' for example by 'negative' instead of 'positive'" in details


def test_a_model_that_labels_tokens_is_compared_by_its_spans(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    tags = ("B-BAD", "B-GOOD", "O")
    for name, weight in ((model, 2.0), (f"{model}-turned", -2.0)):
        digest = make_classifier(builds.root / name, labels=tags, each_token=True, weight=weight, probes=MARKS)
        if weight > 0:
            assert is_published(inference, model, builds.root / name, digest)
        else:
            assert "instead of" in refusal(inference, model, BuildFolder(builds.root / name, digest))


def test_a_writer_whose_chat_template_was_lost_is_refused(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    folder = builds.root / model
    make_generator(folder, folder.with_name(f"scratch-{model}"))
    task = GenerationTask(TEMPLATE, "headline", 128, 16)
    prompts = prompts_of(folder, task)
    measured = language_builds.measure(
        {"fp32": folder},
        [Pair(prompts.of_text("the room"), [5, 2])],
        max_new_tokens=2,
        end=2,
        probes=[prompts.of_text(text) for text in TEXTS],
    )
    probes = Probes.of(measured["fp32"].probes)
    assert len(set(probes.answers)) > 1
    assert is_published(inference, model, folder, finish_generator(folder, probes))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} again: {{ messages[0].content }}")
    details = refusal(inference, model, BuildFolder(folder, finish_generator(folder, probes)))
    assert "probes are answered otherwise" in details
