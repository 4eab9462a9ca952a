"""A larger classifier is asked of the texts of which the small one is not sure, and of no others."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.serving.adapters.route_messages import route_from, route_to
from services.serving.app.cascading import Cascades
from services.serving.app.ports import NotLoadedError, Served
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import Embedded, FinishReason, Piece, Prompt, Recognized, Sampling, Scored, Task
from services.serving.domain.cascade import Cascade, confidence
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Route, RoutedVersion

SURE, UNSURE = "sure", "unsure"
SMALL = {SURE: (0.95, 0.05), UNSURE: (0.6, 0.4)}
LARGE = (0.1, 0.9)


@dataclass
class Server:
    """The small model is sure of some texts; the larger one always says its own, or fails."""

    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    error: Exception | None = None
    gone: int = 0
    """How often the larger model is not loaded, first."""

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        self.asked.append((version.name.removeprefix("models/"), list(texts)))
        if version.model == "small":
            return [Scored(len(text), 0, SMALL[text]) for text in texts]
        if self.error is not None:
            raise self.error
        if self.gone:
            self.gone -= 1
            raise NotLoadedError("not loaded")
        return [Scored(2, len(text) - 2, LARGE) for text in texts]

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        raise NotImplementedError

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        raise NotImplementedError

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        yield Piece("", FinishReason.STOP, 0, 0)


class Notes:
    """What was served, and counts."""

    def __init__(self) -> None:
        self.served: list[Served] = []
        self.texts: Counter[str] = Counter()

    def add(self, served: Sequence[Served]) -> None:
        self.served += served


class ShadowNotes:
    def count(self, outcome: str) -> None:
        """Forgets it."""


@dataclass
class Parts:
    table: RoutingTable
    server: Server
    notes: Notes
    serving: Serving

    async def ask(self, *texts: str, version: str = "", truncate: bool = True) -> list[tuple[str, str]]:
        """Who answered each text, and with which label."""
        choice = self.serving.choose(ModelReference("small", version), Task.TEXT_CLASSIFICATION, user="ann")
        answers, first = await self.serving.predict(choice, texts, truncate=truncate)
        assert first.model == "small"
        return [(item.version.model, item.classified.label) for item in answers]


def route(
    model: str, cascade: Cascade | None = None, labels: tuple[str, ...] = ("a", "b"), generation: int = 1
) -> Route:
    version = RoutedVersion(
        model, 1, Task.TEXT_CLASSIFICATION, labels=labels, users=((0, SLOTS),), generation=generation
    )
    made = Route(model, datetime(2026, 1, 1, tzinfo=UTC), (version,), etag=f"etag-{model}", cascade=cascade)
    return route_from(route_to(made))  # as the data plane gets it


@pytest.fixture
def parts() -> Parts:
    table, server, notes, clock = RoutingTable(), Server(), Notes(), SystemClock()
    table.replace([route("small", Cascade("large", 0.9)), route("large")])

    class Counts:
        def count(self, model: str, outcome: str, texts: int) -> None:
            notes.texts[f"{model} {outcome}"] += texts

    shadows = Shadows(table, server, notes, ShadowNotes(), clock)
    cascades = Cascades(table, server, Counts(), clock)
    return Parts(table, server, notes, Serving(table, server, notes, shadows, clock, cascades=cascades))


async def test_only_what_the_small_model_is_unsure_of_goes_to_the_larger(parts: Parts) -> None:
    assert await parts.ask(SURE, UNSURE, SURE) == [("small", "a"), ("large", "b"), ("small", "a")]
    assert parts.server.asked == [("small/versions/1", [SURE, UNSURE, SURE]), ("large/versions/1", [UNSURE])]
    assert parts.notes.texts == {"small kept": 2, "small asked": 1}
    # Feedback on an answer counts for the version that gave it, and by the route that chose it.
    assert [(note.model_version.split("/")[1], note.route_etag) for note in parts.notes.served] == [
        ("small", "etag-small"),
        ("large", "etag-large"),
        ("small", "etag-small"),
    ]
    assert len({note.user_slot for note in parts.notes.served}) == 2
    assert await parts.ask(SURE) == [("small", "a")]
    assert len(parts.server.asked) == 3


async def test_a_version_that_is_named_answers_alone(parts: Parts) -> None:
    assert await parts.ask(UNSURE, version="1") == [("small", "a")]
    assert await parts.ask(UNSURE, version="champion") == [("small", "a")]
    parts.table.change([route("small")])
    assert await parts.ask(UNSURE) == [("small", "a")]
    assert not parts.notes.texts


async def test_the_temperature_decides_together_with_the_bound(parts: Parts) -> None:
    # At this temperature 0.95 is 0.86.
    parts.table.change([route("small", Cascade("large", 0.9, 1.6))])
    assert await parts.ask(SURE) == [("large", "b")]
    parts.table.change([route("small", Cascade("large", 0.8, 1.6))])
    assert await parts.ask(SURE) == [("small", "a")]


@pytest.mark.parametrize("why", ["fails", "gone", "other labels", "unpublished", "another task"])
async def test_the_small_model_answers_alone_while_the_larger_cannot(
    parts: Parts, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    match why:
        case "fails":
            parts.server.error = UnavailableError("it is away")
        case "gone":
            parts.server.gone = 9
        case "other labels":
            parts.table.change([route("large", labels=("a", "c"))])
        case "unpublished":
            parts.table.replace([route("small", Cascade("large", 0.9))])
        case _:
            found = RoutedVersion("large", 1, Task.GENERATION, users=((0, SLOTS),))
            parts.table.change([Route("large", datetime(2026, 1, 1, tzinfo=UTC), (found,))])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await parts.ask(SURE, UNSURE) == [("small", "a"), ("small", "a")]
    assert parts.notes.texts == {"small kept": 3, "small failed": 3}
    assert len([record for record in caplog.records if "answers alone" in record.message]) == 1


async def test_an_error_of_our_own_is_not_hidden(parts: Parts) -> None:
    parts.server.error = RuntimeError("a fault")
    with pytest.raises(RuntimeError):
        await parts.ask(UNSURE)


async def test_a_larger_model_that_was_loaded_again_is_asked_again(parts: Parts) -> None:
    parts.server.gone = 1
    parts.table.change([route("large", generation=2)])
    before = parts.table.route("large")
    assert before is not None

    original = parts.table.choose_again

    async def choose_again(asked: ModelReference, version: RoutedVersion, user: str = "", *tasks: Task) -> object:
        parts.table.change([route("large", generation=3)])
        return await original(asked, version, user, *tasks)

    parts.table.choose_again = choose_again  # type: ignore[method-assign,assignment]
    assert await parts.ask(UNSURE) == [("large", "b")]


async def test_a_text_that_the_larger_model_cuts_is_refused_where_that_was_asked(parts: Parts) -> None:
    assert await parts.ask(SURE, truncate=False) == [("small", "a")]
    with pytest.raises(InvalidArgumentError) as found:
        await parts.ask(SURE, UNSURE, truncate=False)
    assert found.value.violations[0].field == "texts[1]"
    assert "models/large/versions/1 reads 2" in found.value.message


SCORES = st.lists(st.floats(1e-6, 1), min_size=2, max_size=5).map(lambda found: [each / sum(found) for each in found])


@given(SCORES, st.floats(0.05, 20))
def test_confidence_is_that_of_divided_logits(scores: list[float], temperature: float) -> None:
    logits = [math.log(score) / temperature for score in scores]
    powers = [math.exp(logit - max(logits)) for logit in logits]
    assert confidence(scores, temperature) == pytest.approx(max(powers) / sum(powers))
    assert 1 / len(scores) - 1e-9 <= confidence(scores, temperature) <= 1


def test_scores_of_zero_have_a_confidence() -> None:
    assert confidence([1.0, 0.0], 2.0) == 1.0
    assert Cascade("x", 1.0).is_sure([1.0, 0.0])
