"""`pipelines/reviews.yaml` as a new user runs it: from raw reviews to a served classifier and feedback."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb
from tidemill.pipeline.v1.pipeline_service_pb2 import GetCycleRequest
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from infra.stack.layout import State
from services.kit.network_rules import NetworkRules
from services.kit.storage.database import open_database
from services.pipeline.__main__ import MIGRATIONS
from services.pipeline.adapters.cycle_store import SqlCycleStore
from services.pipeline.adapters.judge_calls import JudgeCalls
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.judge import ClassifierJudge, JudgeSpec
from tests.e2e.conftest import ROOT, Mesh
from tests.waiting import wait_until

# 35,123 lines, half of them repeats.
DISTINCT = 17_457


def _short(value: dict[str, Any]) -> None:
    """A third of the steps learns most of it, in one minute instead of three."""
    value["training"]["optimization"]["max_steps"] = 30


def _run(mesh: Mesh) -> dict[str, Any]:
    found: dict[str, Any] = mesh.json("run", str(mesh.pipeline("reviews.yaml", _short)))
    return found


@pytest.fixture(scope="module")
def cycle(mesh: Mesh) -> dict[str, Any]:
    """The first cycle, ended."""
    return _run(mesh)


def test_the_cycle_publishes_a_better_model(cycle: dict[str, Any]) -> None:
    assert cycle["state"] == "STATE_SUCCEEDED"
    assert [stage["state"] for stage in cycle["stages"]] == ["STATE_SUCCEEDED"] * 5
    version = cycle["dataset_version"]
    assert int(version["records_in"]) == DISTINCT
    kept = int(version["train_count"]) + int(version["holdout_count"])
    assert kept + sum(int(count) for count in version["rejected_by_reason"].values()) == DISTINCT
    tuned = cycle["report"]["tuned"]
    assert tuned["name"] == "accuracy"
    # Far above chance: the two labels are about equally frequent.
    assert tuned["ci_low"] > 0.6
    assert sum(verdict.get("chosen", False) for verdict in cycle["verdicts"]) == 1
    assert cycle["model_version"].startswith("models/reviews/versions/")


def test_the_model_answers_and_feedback_finds_its_version(mesh: Mesh, cycle: dict[str, Any]) -> None:
    answer = mesh.json("predict", "reviews", "房间很干净，服务也好，下次还会来", "太差了，又脏又吵，再也不来")
    assert [prediction["label"] for prediction in answer["predictions"]] == ["positive", "negative"]
    name = answer["predictions"][1]["answer"]
    mesh.tidemill("feedback", name, "good")
    with mesh.channel() as channel:
        stub = PipelineServiceStub(channel)

        def judged() -> pipeline_pb.Feedback | None:
            request = pipeline_pb.ListFeedbackRequest(model="models/reviews")
            found = stub.ListFeedback(request, metadata=mesh.metadata, timeout=10).feedback
            return next((item for item in found if item.answer == name), None)

        assert wait_until(judged).model_version == cycle["model_version"]


def test_the_model_judges_the_answers_of_another_through_the_gateway(mesh: Mesh, cycle: dict[str, Any]) -> None:
    kind = ClassifierJudge(
        f"http://{mesh.stack.address('gateway_http')}", "models/reviews", ("positive",), "TIDEMILL_JUDGE_KEY_MESH"
    )
    calls = JudgeCalls(NetworkRules(["127.0.0.1:*"]), lambda _: mesh.key)

    def good(text: str) -> bool:
        now = datetime.now(UTC)
        answer = CapturedAnswer("answers/a", "models/replies/versions/1", "generate", "问题", text, now)
        return asyncio.run(calls.rate(JudgeSpec("tone", kind), answer, {})).good

    assert good("房间很干净，服务也好，下次还会来")
    assert not good("太差了，又脏又吵，再也不来")


def test_check_asks_the_mesh_for_the_operators(mesh: Mesh) -> None:
    assert mesh.tidemill("run", str(ROOT / "pipelines" / "reviews.yaml"), "--check").stdout == ""

    def change(value: dict[str, Any]) -> None:
        value["dataset"]["operators"][1] = {"length_filter": {"min_chars": "many"}}

    path = mesh.pipeline("reviews.yaml", change)
    result = mesh.tidemill("run", str(path), "--check", check=False)
    assert result.returncode != 0
    assert f"{path}:" in result.stderr
    assert "dataset.operators[1]" in result.stderr

    def misspell(value: dict[str, Any]) -> None:
        value["training"]["base_model"] = "bge-small-zn"

    result = mesh.tidemill("run", str(mesh.pipeline("reviews.yaml", misspell)), "--check", check=False)
    assert result.returncode != 0
    assert "training.base_model: 'bge-small-zn' is neither one of" in result.stderr


def test_a_second_run_reuses_what_is_unchanged(mesh: Mesh, cycle: dict[str, Any]) -> None:
    again = _run(mesh)
    assert again["name"] != cycle["name"]
    assert {stage["name"]: stage.get("reused", False) for stage in again["stages"]} == {
        "collect": True,
        "clean": True,
        "train": True,
        "gate": False,
        "publish": True,
    }
    assert again["model_version"] == cycle["model_version"]


def test_its_data_can_be_looked_into_down_to_one_record(mesh: Mesh, cycle: dict[str, Any], tmp_path: Path) -> None:
    version = cycle["dataset_version"]
    (listed,) = [each for each in mesh.json("dataset", "list") if each["name"] == "datasets/reviews"]
    assert listed["newest"]["digest"] == version["digest"]
    shown = mesh.tidemill("dataset", "show", version["name"]).stdout
    assert f"{DISTINCT:,}" in shown
    assert all(f"rejected: {reason}" in shown for reason in version["rejected_by_reason"])
    assert mesh.tidemill("dataset", "diff", version["name"], "reviews").returncode == 0

    out = tmp_path / "train.jsonl"
    mesh.tidemill("dataset", "export", "reviews", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == int(version["train_count"])
    found = mesh.json("explain", rows[0]["record_id"], "--source", "reviews")
    (explained,) = [each for each in found["datasets"] if each["dataset"] == "datasets/reviews"]
    assert explained["placement"] == "PLACEMENT_TRAIN"
    assert explained["text"] == rows[0]["text"]
    assert cycle["model_version"] in found["models"][explained["dataset_version"]]
    assert cycle["model_version"] in mesh.tidemill("explain", f"sources/reviews/records/{rows[0]['record_id']}").stdout

    lines = tmp_path / "new.txt"
    lines.write_text("這家酒店  很好\n不\n", encoding="utf-8")
    previewed = mesh.tidemill("clean", "preview", str(ROOT / "pipelines" / "reviews.yaml"), str(lines)).stdout
    assert "“這”" in previewed
    assert "convert_script" in previewed
    assert "2 texts: 1 changed, 1 rejected, 0 unchanged" in previewed
    recipe = tmp_path / "reviews.yaml"
    written = (ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8")
    recipe.write_text(written.replace("    - fix_unicode\n", "    - mask_pii: {pseudonyms: true}\n"), encoding="utf-8")
    (tmp_path / "mail.txt").write_text("ask anna@example.com\n", encoding="utf-8")
    assert "[EMAIL-" in mesh.tidemill("clean", "preview", str(recipe), str(tmp_path / "mail.txt")).stdout
    # A data set's recipe ends with what its records must have.
    assert "rejected: missing_field (label)" in mesh.tidemill("clean", "preview", "reviews", str(lines)).stdout


def test_one_trace_reports_on_the_whole_cycle(mesh: Mesh, cycle: dict[str, Any]) -> None:
    wanted = {"gateway", "pipeline", "ingest", "cleaning", "training", "inference"}

    def services() -> set[str] | None:
        found = {span["service"] for span in mesh.json("trace", cycle["trace_id"])["spans"]}
        return found if wanted <= found else None

    wait_until(services)


def test_a_corrected_answer_is_in_the_next_data_set(mesh: Mesh, cycle: dict[str, Any]) -> None:
    """Captured masked, corrected by a person, collected as a source, cleaned by the pipeline's own recipe."""

    def change(value: dict[str, Any]) -> None:
        _short(value)
        judges = [{"name": "form", "rules": {"matches": "^(positive|negative)$"}}]
        value |= {"capture": {"keep_days": 1, "judges": judges}, "feedback": {"corrections": {"weight": 3}}}

    path = str(mesh.pipeline("reviews.yaml", change))
    with mesh.channel() as channel:
        stub = PipelineServiceStub(channel)

        def cycle_until(stage: str) -> cycle_pb2.Cycle:
            """A cycle that is cancelled after a stage: training again would add nothing to what is tested here."""
            name = mesh.json("run", path, "--detach")["name"]
            request = GetCycleRequest(name=name)

            def reached() -> cycle_pb2.Cycle | None:
                found = stub.GetCycle(request, metadata=mesh.metadata, timeout=10).cycle
                assert found.state != cycle_pb2.Cycle.STATE_FAILED, found
                states = {each.name: each.state for each in found.stages}
                return found if states.get(stage) == cycle_pb2.Stage.STATE_SUCCEEDED else None

            found = wait_until(reached, f"the end of stage {stage}", 600)
            mesh.tidemill("cancel", name)
            # Until it has ended, `run` would join it.
            cancelled = cycle_pb2.Cycle.STATE_CANCELLED
            wait_until(lambda: stub.GetCycle(request, metadata=mesh.metadata, timeout=10).cycle.state == cancelled)
            return found

        cycle_until("collect")

        def captured() -> pipeline_pb.CapturedAnswer | None:
            mesh.json("predict", "reviews", "电话13812345678打不通，前台态度冷淡，失望")
            request = pipeline_pb.ListCapturedAnswersRequest(model="models/reviews")
            found = stub.ListCapturedAnswers(request, metadata=mesh.metadata, timeout=10).answers
            return found[0] if found else None

        answer = wait_until(captured, "a captured answer")
        assert "13812345678" not in answer.prompt
        assert "前台态度冷淡" in answer.prompt
        assert answer.model_version == cycle["model_version"]
        judged = wait_until(lambda: mesh.json("judges", "ratings", "reviews", "--answer", answer.name), "a rating")
        wait_until(lambda: mesh.json("judges", "ratings", "reviews")[0]["state"] == "STATE_RATED", "a judge's rating")
        assert judged[0]["judge"] == "models/reviews/judges/form"
        (judge,) = mesh.json("judges", "list")
        # No one has checked it yet, so it decides nothing; JSON leaves out what is false.
        assert ("checked" in judge, judge["good_share"]) == (False, 1)
        label = "positive" if answer.label == "negative" else "negative"  # another one, or it would be no correction
        mesh.tidemill("feedback", answer.name, "bad", "--label", label, "--author", "anna")
        version = cycle_until("clean").dataset_version
    counts = version.feedback_counts
    # A few in a hundred are held back to measure what was learnt.
    assert counts["correction"] + counts["held_back"] == 1, version
    assert version.records_in == DISTINCT + 1


def _let_pass(mesh: Mesh, pipeline: str, time: timedelta) -> None:
    """Has what a pipeline learnt last begun earlier: looks for drift are an hour apart at least."""
    engine = open_database(f"sqlite:///{State(mesh.stack.state).databases / 'pipeline.sqlite'}", MIGRATIONS)
    store = SqlCycleStore(engine)
    learnt = store.learnt(pipeline)
    assert learnt is not None
    collect = learnt.stage("collect")
    assert collect.start_time is not None
    store.update(learnt.with_stage(replace(collect, start_time=collect.start_time - time)))
    engine.dispose()


# Minutes of waiting: there is a look a minute at most.
@pytest.mark.slow
def test_other_texts_than_it_learnt_from_start_a_cycle(mesh: Mesh, cycle: dict[str, Any]) -> None:
    def change(value: dict[str, Any]) -> None:
        _short(value)
        drift = {"signals": ["input"], "min_answers": len(_ASKED), "every_hours": 1}
        value |= {"capture": {"keep_days": 1}, "triggers": {"drift": drift, "debounce_minutes": 0}}

    # Reuses what is there, and sets what is captured and watched from now on.
    mesh.tidemill("run", str(mesh.pipeline("reviews.yaml", change)))
    before = {each["name"] for each in mesh.json("cycles", "reviews")}
    _let_pass(mesh, "reviews", timedelta(hours=2))

    def started() -> list[str] | None:
        # Until the doors know what is captured, they capture nothing.
        mesh.json("predict", "reviews", *_ASKED)
        return sorted({each["name"] for each in mesh.json("cycles", "reviews")} - before) or None

    (name,) = wait_until(started, "a cycle that drift starts", 400)
    mesh.tidemill("triggers", "pause", "reviews", "--reason", "the test has seen it")
    mesh.tidemill("cancel", name)
    (found,) = [each for each in mesh.json("cycles", "reviews") if each["name"] == name]
    (reason,) = found["reasons"]
    assert reason.startswith("Drift of what is asked: ")
    assert cycle["dataset_version"]["name"].split("/versions/")[0] in reason


_ASKED = [
    f"{part} of the {machine} {fault}"
    for part in ("cache", "kernel", "router", "database", "compiler")
    for machine in ("laptop", "server", "cluster", "telephone")
    for fault in ("crashes after an update", "leaks memory", "refuses every connection", "answers too slowly")
]
