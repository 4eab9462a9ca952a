"""The console's first page: what needs a person, from real messages."""

from __future__ import annotations

import asyncio

import pytest
from tidemill.inference.v1.route_pb2 import Route
from tidemill.pipeline.v1.cycle_pb2 import Cycle, GateVerdict
from tidemill.pipeline.v1.review_pb2 import ReviewAgreement
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill.pipeline.v1.trigger_pb2 import Trigger, TriggerFiring

from gateway.console.pages.home import _elasticsearch, loops, needs
from gateway.console.rendering import linked
from gateway.console.words import part_status
from gateway.health import PartsHealth
from services.kit.errors import UnavailableError
from tests.unit.cli.cycles import running, succeeded
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, LONG, rendered, text_of


def cycle(pipeline: str, number: int, state: Cycle.State.ValueType, **more: object) -> Cycle:
    return Cycle(name=f"pipelines/{pipeline}/cycles/c{number}", state=state, **more)  # type: ignore[arg-type]


def test_a_loop_is_its_newest_cycle_and_its_triggers() -> None:
    cycles = [cycle("b", 3, Cycle.STATE_RUNNING), cycle("b", 2, Cycle.STATE_FAILED), cycle("a", 1, Cycle.STATE_FAILED)]
    found = loops(cycles, [Trigger(pipeline="pipelines/c"), Trigger(pipeline="pipelines/b")])
    assert [loop.name for loop in found] == ["pipelines/a", "pipelines/b", "pipelines/c"]
    assert [loop.cycle.name if loop.cycle else "" for loop in found] == [cycles[2].name, cycles[0].name, ""]
    assert [loop.trigger is not None for loop in found] == [False, True, True]


def test_what_needs_a_person_begins_with_the_worst() -> None:
    failed = cycle("a", 1, Cycle.STATE_FAILED)
    failed.failure.message = "The source is gone."
    rejected = cycle("b", 2, Cycle.STATE_REJECTED, verdicts=[GateVerdict(why="loses 26 %")])
    paused = Trigger(pipeline="pipelines/c", paused=True, pause_reason="holidays")
    broken = Trigger(pipeline="pipelines/d", firings=[TriggerFiring(error="Kafka is unavailable.")])
    waiting = ModelRollout(
        name="rollouts/r1",
        model="models/m",
        candidate="models/m/versions/4",
        state=ModelRollout.STATE_AWAITING_APPROVAL,
        reason="It gave 200 answers.",
    )
    frozen = ModelRollout(name="rollouts/r2", state=ModelRollout.STATE_RUNNING, frozen=True)
    ended = ModelRollout(name="rollouts/r3", state=ModelRollout.STATE_ROLLED_BACK, frozen=True)
    withdrawn = Route(model="models/gone")
    withdrawn.withdrawn.message = "Its build is damaged."
    found = needs(
        loops([failed, rejected], [paused, broken]),
        [waiting, frozen, ended],
        ReviewAgreement(pending=1),
        [withdrawn, Route(model="models/m")],
        [("ingest", part_status("unavailable")), ("cleaning", part_status("serving"))],
    )
    assert [(need.tone, need.what, need.why, need.path) for need in found] == [
        ("bad", "The ingest service: does not answer", "", ""),
        ("bad", "gone is out of service", "Its build is damaged.", "/models/gone"),
        ("bad", "The last cycle of a failed", "The source is gone.", "/pipelines/a/cycles/c1"),
        ("bad", "A cycle of d could not be started", "Kafka is unavailable.", "/pipelines/d"),
        ("warn", "The gate refused the last cycle of b", "loses 26 %", "/pipelines/b/cycles/c2"),
        ("warn", "The triggers of c are paused", "holidays", "/pipelines/c"),
        ("warn", "The roll-out of version 4 of m awaits approval", "It gave 200 answers.", "/rollouts/r1"),
        ("warn", "The roll-out of version  of  is frozen", "", "/rollouts/r2"),
        ("busy", "1 answer waits for review", "", "/reviews"),
    ]


def test_texts_of_others_are_shown_as_texts() -> None:
    failed = running()
    failed.state = Cycle.STATE_FAILED
    failed.failure.message = HOSTILE
    trigger = Trigger(pipeline="pipelines/headlines", summary=LONG, paused=True, pause_reason=CHINESE)
    found = loops([failed], [trigger])
    page = rendered(
        "home.html",
        needs=needs(found, [], None, [], []),
        loops=found,
        parts_=[],
        serving={},
        errors=[UnavailableError(HOSTILE)],
    )
    shown = text_of(page)
    assert shown.count(HOSTILE) == 2
    assert LONG in shown
    assert CHINESE in shown


def test_names_in_sentences_lead_to_their_pages() -> None:
    shown = linked(f"pipelines/a/cycles/c1 made models/m/versions/4 {HOSTILE} of runs/r-1, not pipelines/a")
    assert [link.partition('"')[0] for link in shown.split('href="')[1:]] == [
        "/console/pipelines/a/cycles/c1",
        "/console/models/m/versions/4",
        "/console/runs/r-1",
    ]
    assert "<script" not in shown
    assert text_of(shown).startswith("pipelines/a/cycles/c1 made models/m/versions/4 <script>")


def test_a_quiet_mesh_says_that_nothing_is_to_do() -> None:
    found = loops([succeeded()], [])
    serving = {"models/headlines": "models/headlines/versions/3"}
    page = rendered("home.html", needs=[], loops=found, parts_=[], serving=serving, errors=[])
    assert "Nothing. Every loop turns by itself." in page
    assert "published" in page
    assert "version 3 serves" in text_of(page)


async def test_parts_that_are_not_services_are_asked_every_few_seconds_and_never_for_long() -> None:
    asked = []

    async def kafka() -> bool:
        asked.append("kafka")
        return True

    async def triton() -> bool:
        return False

    async def silent() -> bool:
        await asyncio.sleep(60)
        return True

    health = PartsHealth({}, {"Kafka": kafka, "Triton": triton, "Silent": silent})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.health._PATIENCE_S", 0.05)
        found = await health.infrastructure()
        assert found == {"Kafka": "serving", "Triton": "unavailable", "Silent": "unavailable"}
        await health.infrastructure()
    assert asked == ["kafka"]
    # They need a person, too, and are not called services.
    (need,) = needs([], [], None, [], [("Triton", part_status("unavailable")), ("Kafka", part_status("serving"))])
    assert need.what == "Triton: does not answer"


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, "serving"),
        (UnavailableError("x", reason="ELASTICSEARCH_UNAVAILABLE"), "does not answer"),
        (UnavailableError("x", reason="PEER_UNAVAILABLE"), "unknown"),
    ],
)
def test_elasticsearch_is_known_by_what_telemetry_says(error: UnavailableError | None, word: str) -> None:
    assert _elasticsearch(error).word == word
