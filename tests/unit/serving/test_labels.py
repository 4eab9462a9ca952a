"""Several labels of a text: from the scores of a version to the answer, and to what is noted of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime

from services.kit.clock import SystemClock
from services.kit.labels import assigned, labels_answer
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import Embedded, FinishReason, Piece, Prompt, Recognized, Sampling, Scored, Task
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Route, RoutedVersion
from services.serving.entrypoints.mapping import prediction_to
from tests.unit.serving.test_shadowing import Log

M, KIND = ModelReference("m"), Task.MULTI_LABEL_CLASSIFICATION


class Server:
    """Gives one text two labels, and the next none."""

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        return [Scored(scores=((0.5, 0.1, 0.9), (0.4, 0.1, 0.2))[at % 2]) for at in range(len(texts))]

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        raise NotImplementedError

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        raise NotImplementedError

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        yield Piece("", FinishReason.STOP, 0, 0)


async def test_an_answer_has_every_label_from_its_threshold_on() -> None:
    table, log, clock = RoutingTable(), Log(), SystemClock()
    version = RoutedVersion("m", 1, KIND, labels=("b", "c", "a"), users=((0, SLOTS),))
    table.replace([Route("m", datetime(2026, 1, 1, tzinfo=UTC), (version,), etag="7")])
    server = Server()
    serving = Serving(table, server, log, Shadows(table, server, log, log, clock), clock)
    found, _ = await serving.predict(serving.choose(M, KIND), ["x", "y"])
    first, second = map(prediction_to, found)
    assert list(first.labels) == ["a", "b"]
    assert dict(first.scores) == {"b": 0.5, "c": 0.1, "a": 0.9}
    assert (first.label, first.score) == ("", 0.0)
    assert list(second.labels) == []
    # Equal for equal sets, so that a shadow can be compared with what it shadows.
    assert [each.label for each in log.served] == ['["a", "b"]', "[]"]


def test_labels_are_assigned_by_their_own_score() -> None:
    assert assigned(["a", "b", "c"], [0.5, 0.49, 0.51]) == ["c", "a"]
    assert labels_answer(["雨", "a"]) == labels_answer(["a", "雨"]) == '["a", "雨"]'
