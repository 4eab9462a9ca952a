"""Judges ask a real gateway, as the pipeline service does: its doors take their requests, and keep nothing of them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.network_rules import NetworkRules
from services.pipeline.adapters.judge_calls import JudgeCalls
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.judge import (
    ClassifierJudge,
    JudgeKind,
    JudgeSpec,
    LanguageModelJudge,
    NoVerdictError,
    Opinion,
)
from tests.integration.gateway.conftest import Mesh

KEY = "TIDEMILL_JUDGE_KEY_MESH"
ANSWERED = CapturedAnswer("answers/a", "models/m/versions/1", "generate", "Asked?", "Answered.", datetime.now(UTC))


def rated(mesh: Mesh, kind: JudgeKind, key: str | None = None) -> Opinion:
    calls = JudgeCalls(NetworkRules(["127.0.0.1:*"]), lambda _: mesh.key if key is None else key)
    calls.check(JudgeSpec("j", kind), "spec.capture.judges[0]")
    return asyncio.run(calls.rate(JudgeSpec("j", kind), ANSWERED, {}))


def test_a_classifier_behind_the_gateway_rates_by_its_label(mesh: Mesh) -> None:
    address = f"http://{mesh.http}"
    assert rated(mesh, ClassifierJudge(address, "models/reviews", ("positive",), KEY)).good
    bad = rated(mesh, ClassifierJudge(address, "models/reviews/versions/1", ("negative",), KEY))
    assert (bad.good, bad.reason) == (False, "It says positive.")


def test_a_language_model_behind_the_gateway_is_held_to_the_schema_of_a_verdict(mesh: Mesh) -> None:
    kind = LanguageModelJudge(f"http://{mesh.http}/v1", "headlines", "It is short.", KEY)
    # The model of these tests writes the same to all, which is not a verdict.
    with pytest.raises(NoVerdictError, match="Rates rise again") as caught:
        rated(mesh, kind)
    assert caught.value.tokens > 0
    asked = mesh.peers.seen.requests[-1]
    sampling = asked.sampling
    assert json.loads(sampling.json_schema)["required"] == ["verdict", "why"]
    assert (sampling.max_tokens, sampling.temperature) == (200, 0)
    assert [message.role for message in asked.conversation.messages] == ["system", "user"]
    assert json.loads(asked.conversation.messages[1].content) == {"asked": "Asked?", "answered": "Answered."}


def test_what_the_gateway_refuses_is_said_and_decides_nothing(mesh: Mesh) -> None:
    address = f"http://{mesh.http}"
    with pytest.raises(FailedPreconditionError, match="status 401: look at its address, model and key"):
        rated(mesh, ClassifierJudge(address, "models/reviews", ("positive",), KEY), key="wrong")
    with pytest.raises(FailedPreconditionError, match="status 404"):
        rated(mesh, ClassifierJudge(address, "models/nothing", ("positive",), KEY))
    with pytest.raises(NoVerdictError, match="status 400"):
        rated(mesh, ClassifierJudge(address, "models/headlines", ("positive",), KEY))
