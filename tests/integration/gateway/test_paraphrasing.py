"""Augmenters ask a real gateway, as the cleaning service does: its door takes the request, and keeps nothing of it."""

from __future__ import annotations

import asyncio

import pytest

from services.cleaning.adapters.served_models import ServedModels
from services.cleaning.engine.rewriter import Answer, Question, ServedModel
from services.kit.errors import FailedPreconditionError
from services.kit.network_rules import NetworkRules
from tests.integration.gateway.conftest import Mesh

KEY = "TIDEMILL_AUGMENT_KEY_MESH"


def asked(mesh: Mesh, model: str, key: str | None = None) -> Answer:
    models = ServedModels(NetworkRules(["127.0.0.1:*"]), lambda _: mesh.key if key is None else key, 20)
    served = ServedModel(f"http://{mesh.http}/v1", model, KEY)
    assert models.refused(served) == ""
    question = Question(served, "Say it again: rates rise", 32, 0.7, 5, ("news", "r1"), 1)
    return asyncio.run(models.ask(question))


def test_a_language_model_behind_the_gateway_writes_a_variant(mesh: Mesh) -> None:
    answer = asked(mesh, "headlines")
    assert answer.text.startswith("Rates rise again")
    assert answer.dropped == ""
    sampling = mesh.peers.seen.requests[-1].sampling
    assert (sampling.max_tokens, round(sampling.temperature, 3)) == (32, 0.7)
    assert sampling.seed > 0


def test_what_the_gateway_refuses_is_said(mesh: Mesh) -> None:
    with pytest.raises(FailedPreconditionError, match="status 401: look at its address, model and key"):
        asked(mesh, "headlines", key="wrong")
    with pytest.raises(FailedPreconditionError, match="status 404"):
        asked(mesh, "nothing")
    refused = asked(mesh, "reviews")
    assert (refused.text, refused.dropped, refused.detail) == ("", "refused", "It refuses this text with status 400.")
