"""The commands of what the mesh learns, as a person starts them: triggers, erasures, reviews."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tidemill.pipeline.v1 import review_pb2

from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.console_peers import reviews, trigger
from tests.integration.gateway.test_cli import ROOT, tidemill

PIPELINE = ROOT / "pipelines" / "headlines.yaml"


def test_why_names_each_condition_and_each_hold(mesh: Mesh) -> None:
    mesh.peers.triggers.trigger = trigger()
    shown = tidemill(mesh, "why", "headlines")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "No cycle starts: 12 of 60 corrections are there.",
        "  · corrections: 12 of 60 corrections since the last cycle.",
        "  · schedule: The schedule is due on Monday at 03:00 UTC.",
        "  ✗ A cycle is running.",
        "  2026-09-21 14:13  pipelines/headlines/cycles/01jtest  60 of 60 corrections.",
    ]
    found = json.loads(tidemill(mesh, "why", "headlines", "--json").stdout)
    assert [check["condition"] for check in found["checks"]] == ["corrections", "schedule"]


def test_triggers_are_put_listed_paused_and_resumed(mesh: Mesh, tmp_path: Path) -> None:
    mesh.peers.triggers.trigger = trigger()
    file = tmp_path / "loop.yaml"
    file.write_text(f"{PIPELINE.read_text(encoding='utf-8')}\ntriggers: {{new_records: 7}}\n", encoding="utf-8")
    done = tidemill(mesh, "triggers", "put", str(file))
    assert done.returncode == 0, done.stderr
    assert mesh.peers.seen.requests[-1].spec.triggers.new_records == 7
    listed = tidemill(mesh, "triggers", "list")
    assert listed.stdout.splitlines()[1].split()[:2] == ["headlines", "waits"]
    paused = tidemill(mesh, "triggers", "pause", "headlines", "--reason", "the label set changes")
    assert paused.returncode == 0, paused.stderr
    request = mesh.peers.seen.requests[-1]
    assert (request.pipeline, request.reason) == ("pipelines/headlines", "the label set changes")
    assert tidemill(mesh, "triggers", "list").stdout.splitlines()[1].split()[:2] == ["headlines", "paused"]
    assert tidemill(mesh, "triggers", "resume", "headlines").returncode == 0
    assert mesh.peers.triggers.trigger.paused is False
    # A wrong field is named by its place in the file, and nothing is sent.
    file.write_text(file.read_text().replace("new_records: 7", "drift: {signals: [weather]}"), encoding="utf-8")
    asked = len(mesh.peers.seen.requests)
    refused = tidemill(mesh, "triggers", "put", str(file))
    assert refused.returncode == 2
    assert "triggers.drift.signals" in refused.stderr
    assert len(mesh.peers.seen.requests) == asked


def test_erase_says_what_is_deleted_what_learnt_and_what_is_left(mesh: Mesh) -> None:
    done = tidemill(mesh, "erase", "--user", "dora", "--tenant", "acme", "--reason", "asked on Monday")
    assert done.returncode == 0, done.stderr
    request = mesh.peers.seen.requests[-1]
    assert (request.author, request.tenant, request.reason) == ("dora", "acme", "asked on Monday")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("exclusions/01jerasure  erasure of p-00000000000d05a0, 2026-")
    assert lines[1:] == [
        "  deleted: 1 answers, 2 feedback",
        "  datasets/d/versions/1 was rewritten without it",
        "  not complete: cleaning's records and data sets follow; `tidemill quarantine list` shows when",
        "  learnt from 2 records: pipelines/headlines/cycles/c1  datasets/d/versions/1 → runs/r1",
        "  a cycle of pipelines/headlines was ordered",
    ]
    assert "dora" not in done.stdout
    listed = tidemill(mesh, "quarantine", "list").stdout
    assert "complete since 2026-" in listed
    refused = tidemill(mesh, "erase")
    assert (refused.returncode, "--user" in refused.stderr) == (2, True)


@pytest.mark.parametrize("keys", ["e\nBanks hold rates\nl\nnegative\n", "x\ns\nq\n"])
def test_review_walk_goes_through_the_queue_by_keys(mesh: Mesh, keys: str) -> None:
    mesh.peers.reviews.queue = reviews()
    before = len(mesh.peers.seen.requests)
    done = tidemill(mesh, "review", "walk", "--reviewer", "rita", text=keys)
    assert done.returncode == 0, done.stderr
    sent = [item for item in mesh.peers.seen.requests[before:] if type(item).__name__ == "SubmitReviewRequest"]
    found = [(item.answer, item.reviewer, item.action, item.target) for item in sent]
    if keys.startswith("e"):
        assert found == [
            ("answers/01jwriter", "rita", review_pb2.REVIEW_ACTION_EDIT, "Banks hold rates"),
            ("answers/01jclassifier", "rita", review_pb2.REVIEW_ACTION_RELABEL, "negative"),
        ]
        assert done.stdout.rstrip().endswith("Nothing is left to review.")
        assert "→ positive (0.52)" in done.stdout
    else:
        # An unknown key shows the keys, a skipped answer is out of the way, and quitting leaves the rest.
        assert found == [("answers/01jwriter", "rita", review_pb2.REVIEW_ACTION_SKIP, "")]
        assert "a accept, e edit, l relabel, r reject, s skip, q quit" in done.stdout
        assert [item.answer for item in mesh.peers.reviews.queue] == ["answers/01jclassifier"]


def test_judges_show_what_they_cost_and_whether_they_may_decide(mesh: Mesh) -> None:
    shown = tidemill(mesh, "judges", "list")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "models/headlines/judges/large  language model large at https://judges.example/v1, does not decide",
        "  People rated 0 of its answers; 50 are needed.",
        "  nothing rated yet, 12 wait, 2 without a verdict, 3 over the limit; "
        "500 of 500 calls today, 61,000 of 100,000 tokens",
        "  It rates nothing at the moment: It did not answer within 30 s.",
        "models/headlines/judges/short-enough  rules, may decide",
        "  Cohen's kappa with people is 0.71 [0.60, 0.82] on 120 answers; 0.40 is required.",
        "  1,200 rated, 93% of them good; costs no calls",
    ]
    assert json.loads(tidemill(mesh, "judges", "list", "--json").stdout)[1]["checked"] is True
    said = tidemill(mesh, "judges", "ratings", "headlines")
    assert [line.split()[1:3] for line in said.stdout.splitlines()[1:]] == [["large", "waits"], ["short-enough", "bad"]]
    assert "It has 120 characters, above 80." in said.stdout
