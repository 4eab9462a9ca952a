"""The command line against a gateway, as a person starts it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.cells import cell_len
from tidemill.inference.v1.route_pb2 import VersionRole
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.telemetry.v1.telemetry_service_pb2 import LogRecord, Span

from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.fake_peers import ANSWER, OLDER, ROLLOUT, WORDS
from tests.unit.cli.cycles import NAME, running, succeeded
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def environment(state: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")}
    return kept | {"TIDEMILL_STATE": str(state), "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}


def tidemill(mesh: Mesh, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = environment(mesh.state) | {"TIDEMILL_ADDRESS": mesh.grpc}
    command = [sys.executable, "-m", "gateway.cli.main", *arguments]
    return subprocess.run(
        command, env=environ, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_generate_streams_and_names_the_answer(mesh: Mesh) -> None:
    done = tidemill(mesh, "generate", "headlines", "An article.", "--max-tokens", "9", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(WORDS) + "\n"
    assert ANSWER in done.stderr
    assert "trace " in done.stderr
    request = mesh.peers.seen.requests[-1]
    assert (request.text, request.sampling.max_tokens, request.sampling.seed) == ("An article.", 9, 0)
    trace = done.stderr.rpartition("trace ")[2].strip()
    assert trace in str(mesh.peers.seen.metadata[-1]["traceparent"])


def test_generate_from_standard_input_as_json(mesh: Mesh) -> None:
    done = tidemill(mesh, "generate", "headlines", "-", "--chat", "--json", text="From a pipe.")
    pieces = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(piece.get("text_delta", "") for piece in pieces) == "".join(WORDS)
    assert mesh.peers.seen.requests[-1].conversation.messages[0].content == "From a pipe."


def entries_of(request: Any) -> list[tuple[int, str, int]]:
    names = {role: name.removeprefix("VERSION_ROLE_").lower() for name, role in VersionRole.items()}
    return [(entry.version, names[entry.role], entry.weight) for entry in request.entries]


def test_a_route_is_shown_set_and_promoted(mesh: Mesh) -> None:
    shown = tidemill(mesh, "route", "show", "reviews")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[1] == ["version", "3", "serving", "75.0", "%", "60", "int8", "champion,", "stable"]
    assert rows[2] == ["version", "4", "canary", "25.0", "%", "20", "int8"]
    assert rows[3] == ["version", "5", "shadow", "int8"]

    done = tidemill(
        mesh, "route", "set", "reviews", "3=70", "4=30:canary", "6:shadow", "7:candidate", "--alias", "next=7"
    )
    assert done.returncode == 0, done.stderr
    request = mesh.peers.seen.requests[-1]
    expected = [(3, "serving", 70), (4, "canary", 30), (6, "shadow", 0), (7, "candidate", 0)]
    assert (entries_of(request), dict(request.aliases), request.etag) == (expected, {"next": 7}, "7")

    # Aliases stay as they are where none is given, and an etag that is given counts.
    assert tidemill(mesh, "route", "set", "reviews", "3", "--etag", "5").returncode == 0
    request = mesh.peers.seen.requests[-1]
    assert (entries_of(request), dict(request.aliases), request.etag) == ([(3, "serving", 100)], {"stable": 3}, "5")

    assert tidemill(mesh, "route", "promote", "reviews", "4", "--reason", "it is better").returncode == 0
    request = mesh.peers.seen.requests[-1]
    assert (request.model, request.version, request.reason) == ("models/reviews", 4, "it is better")


def test_a_larger_model_is_set_behind_a_classifier(mesh: Mesh) -> None:
    options = ("--min-confidence", "0.9", "--temperature", "1.5", "--reason", "cheaper")
    done = tidemill(mesh, "route", "cascade", "reviews", "m", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "asks m below a confidence of 0.9 at temperature 1.5"
    request = mesh.peers.seen.requests[-1]
    assert (request.model, request.cascade.model, request.reason) == ("models/reviews", "models/m", "cheaper")
    assert (request.cascade.min_confidence, request.cascade.temperature) == (0.9, 1.5)
    assert tidemill(mesh, "route", "cascade", "reviews", "--off").returncode == 0
    assert not mesh.peers.seen.requests[-1].HasField("cascade")


def test_a_rollout_is_listed_shown_and_overruled(mesh: Mesh) -> None:
    listed = tidemill(mesh, "rollout", "list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[1].split()[:5] == [ROLLOUT, "reviews/versions/4", "running", "ab", "0.5"]
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [ROLLOUT, OLDER]
    shown = tidemill(mesh, "rollout", "show", "reviews")
    assert mesh.peers.seen.requests[-1].name == ROLLOUT
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["→", "ab", "0.5"] in lines
    assert ["4", "50.0%", "290", "0", "0", "0", "ms", "280", "250", "0.750"] in lines
    assert lines[-1] == ["advantage", "+0.1000,", "between", "-0.0500", "and", "+0.2500"]
    back = tidemill(mesh, "rollout", "rollback", "reviews", "--reason", "I saw something")
    assert back.stdout == f"{ROLLOUT}: rolled back: I saw something\n"
    request = mesh.peers.seen.requests[-1]
    assert (request.name, request.reason, len(request.request_id)) == (ROLLOUT, "I saw something", 26)
    assert "running, frozen" in tidemill(mesh, "rollout", "freeze", ROLLOUT).stdout
    missing = tidemill(mesh, "rollout", "show", "headlines")
    assert (missing.returncode, "rollout list" in missing.stderr) == (1, True)


def test_the_audit_trail_is_shown_and_exported_whole(mesh: Mesh) -> None:
    shown = tidemill(mesh, "audit", "models/reviews", "-n", "5")
    assert shown.stdout.splitlines()[1].split()[2:] == ["key:k1", "rollout.freeze", ROLLOUT, "a", "fair"]
    request = mesh.peers.seen.requests[-1]
    assert (request.resource, request.page_size) == ("models/reviews", 5)
    exported = tidemill(mesh, "audit", "--export").stdout.splitlines()
    assert [json.loads(line)["name"] for line in exported] == ["auditEntries/0", "auditEntries/1"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("set", "reviews", "3=x"), 2, "'3=x' is not a version of a route"),
        (("set", "reviews", "3:king"), 2, "'3:king' is not a version of a route"),
        (("set", "reviews", "3", "--alias", "3=next"), 2, "'3=next' is not an alias"),
        (("cascade", "reviews"), 2, "Give a larger model with --min-confidence, or --off"),
        (("cascade", "reviews", "m"), 2, "Give a larger model with --min-confidence, or --off"),
        (("cascade", "reviews", "m", "--min-confidence", "0.9", "--off"), 2, "or --off"),
    ],
)
def test_an_invalid_route_is_refused_before_anything_changes(
    mesh: Mesh, arguments: tuple[str, ...], status: int, message: str
) -> None:
    asked = len(mesh.peers.seen.requests)
    done = tidemill(mesh, "route", *arguments)
    assert (done.returncode, message in " ".join(done.stderr.split())) == (status, True), done.stderr
    assert len(mesh.peers.seen.requests) == asked


def test_predict(mesh: Mesh) -> None:
    done = tidemill(mesh, "predict", "reviews", "很好", "很差")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("positive") == 2
    found = json.loads(tidemill(mesh, "predict", "reviews", "-", "--json", text="a\n\nb\n").stdout)
    assert [prediction is not None for prediction in found["predictions"]] == [True, False, True]


def test_predict_takes_more_lines_than_one_request_holds(mesh: Mesh) -> None:
    done = tidemill(mesh, "predict", "reviews", "-", "--json", text="".join(f"text {n}\n" for n in range(600)))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 600
    # Requests of 256, 256 and 88 texts, each passed to Triton in parts that it takes.
    assert [len(request.texts) for request in mesh.peers.seen.requests[-19:]] == [32] * 18 + [24]
    done = tidemill(mesh, "predict", "reviews", "-", text=" \n")
    assert (done.returncode, "standard input is empty" in done.stderr) == (2, True)


def test_a_file_is_answered_line_for_line_and_continued(mesh: Mesh, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": f"r{number}", "text": f"text {number}"} for number in range(150)]
    rows[7]["text"] = "a\0b"  # refused, alone
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = tidemill(mesh, "predict", "reviews", "--in", str(source), "--out", str(target))
    assert done.returncode == 0, done.stderr
    whole = target.read_text()
    found = [json.loads(line) for line in whole.splitlines()]
    assert [(item["line"], item["id"]) for item in found] == [(at + 1, f"r{at}") for at in range(150)]
    assert [at for at, item in enumerate(found) if "error" in item] == [7]
    assert found[7]["error"]["code"] == "INVALID_ARGUMENT"
    assert all(item["label"] == "positive" and item["answer"] for at, item in enumerate(found) if at != 7)

    cut = whole[: whole.index("\n", len(whole) // 2) + 20]  # in the middle of a line, as a crash leaves it
    target.write_text(cut)
    asked = len(mesh.peers.seen.requests)
    assert tidemill(mesh, "predict", "reviews", "--in", str(source), "--out", str(target)).returncode == 0
    assert [json.loads(line)["line"] for line in target.read_text().splitlines()] == list(range(1, 151))
    assert target.read_text().startswith(cut[: cut.rindex("\n") + 1])
    assert sum(len(request.texts) for request in mesh.peers.seen.requests[asked:]) < 100

    source.write_text('{"id": "other", "text": "a"}\n')
    done = tidemill(mesh, "predict", "reviews", "--in", str(source), "--out", str(target))
    assert (done.returncode, "another input" in done.stderr) == (2, True)


def test_a_file_of_prompts_is_answered(mesh: Mesh, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "one"}\n{"text": "two"}\n')
    files = ("--in", str(source), "--out", str(target))
    done = tidemill(mesh, "generate", "headlines", *files, "--max-tokens", "5")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["text"] for line in target.read_text().splitlines()] == ["".join(WORDS)] * 2
    for line, words in (("{", "line 1 is not JSON"), ('{"text": " "}', "line 1: `text` must be")):
        source.write_text(line)
        done = tidemill(mesh, "generate", "headlines", *files)
        assert (done.returncode, words in " ".join(done.stderr.split())) == (2, True), done.stderr
    done = tidemill(mesh, "generate", "headlines", "a text", *files)
    assert (done.returncode, "go together" in done.stderr) == (2, True)
    # No one waits for a file's answers: others come first.
    assert "tidemill_background" in mesh.peers.seen.metadata[-1]


def test_texts_are_shown_as_they_are(mesh: Mesh) -> None:
    done = tidemill(mesh, "predict", "reviews", "a [/b] :smile: [red]c")
    assert done.returncode == 0, done.stderr
    assert "a [/b] :smile: [red]c" in done.stdout


def test_a_result_is_whole_in_a_pipe_and_never_gives_way_to_its_text(mesh: Mesh) -> None:
    text = "很好 " * 60
    piped = tidemill(mesh, "predict", "reviews", text).stdout
    assert text.strip() in piped
    main, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environ = environment(mesh.state) | {"TIDEMILL_ADDRESS": mesh.grpc, "TERM": "xterm"}
    del environ["COLUMNS"]
    command = [sys.executable, "-m", "gateway.cli.main", "predict", "reviews", text]
    subprocess.run(command, env=environ, cwd=ROOT, stdout=terminal, stderr=subprocess.DEVNULL, timeout=60, check=True)
    os.close(terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(main, 1 << 16).decode())
    os.close(main)
    row = shown.splitlines()[1]
    assert all(word in row for word in ("positive", "0.900", "很好 很", "…", ANSWER))
    assert cell_len(row) <= 60


def test_a_service_that_is_unavailable_is_named_with_what_to_do(mesh: Mesh) -> None:
    mesh.peers.telemetry.away = True
    done = tidemill(mesh, "logs")
    mesh.peers.telemetry.away = False
    assert done.returncode == 1
    assert "telemetry service does not answer" in done.stderr
    assert "tidemill status" in done.stderr


def test_models(mesh: Mesh) -> None:
    done = tidemill(mesh, "models")
    assert "headlines" in done.stdout
    assert "version 3" in done.stdout
    assert json.loads(tidemill(mesh, "models", "--json").stdout)[0]["serving"]["precision"] == "int8"


@pytest.mark.parametrize(("rating", "value"), [("good", 1.0), ("-1", -1.0), ("0.5", 0.5)])
def test_feedback(mesh: Mesh, rating: str, value: float) -> None:
    done = tidemill(mesh, "feedback", ANSWER, rating, "--correction", "Better")
    assert done.returncode == 0, done.stderr
    seen = mesh.peers.seen.requests[-1]
    assert (seen.answer, seen.rating, seen.correction) == (ANSWER, value, "Better")


def test_following_a_cycle_ends_with_its_summary(mesh: Mesh) -> None:
    mesh.peers.pipeline.states = [running(), succeeded()]
    done = tidemill(mesh, "follow", "headlines")
    assert done.returncode == 0, done.stderr
    assert "[train] evaluate · 34/60 steps" in done.stderr
    assert "2,225 in → 2,059 cleaned" in done.stdout
    assert f"insecure_channel('{mesh.grpc}')" in done.stdout


def test_a_rejected_cycle_has_its_own_exit_code(mesh: Mesh) -> None:
    rejected = succeeded()
    rejected.state, rejected.model_version = Cycle.STATE_REJECTED, ""
    mesh.peers.pipeline.states = [rejected]
    done = tidemill(mesh, "follow", NAME, "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["state"] == "STATE_REJECTED"


# A shell that runs the tests in the background has SIGINT ignored, and programs inherit that. Not by `preexec_fn`:
# its Python between fork and exec ends now and then where gRPC has threads.
HEEDING_INTERRUPTS = ("env", "--default-signal=INT")


def test_interrupted_it_says_that_the_cycle_continues(mesh: Mesh) -> None:
    mesh.peers.pipeline.states = [running()]
    mesh.peers.pipeline.pause_s = 30.0
    process = subprocess.Popen(
        [*HEEDING_INTERRUPTS, sys.executable, "-m", "gateway.cli.main", "follow", NAME],
        env=environment(mesh.state) | {"TIDEMILL_ADDRESS": mesh.grpc},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "[train]" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    mesh.peers.pipeline.pause_s = 0.0
    assert process.returncode == 130
    assert "the cycle continues" in errors
    assert f"follow {NAME}" in errors
    assert f"cancel {NAME}" in errors
    assert "Traceback" not in errors


def test_cycles_and_cancel(mesh: Mesh) -> None:
    mesh.peers.pipeline.states = [succeeded()]
    assert "headlines/cycles/01jtest" in tidemill(mesh, "cycles").stdout
    done = tidemill(mesh, "cancel", "headlines")
    assert done.returncode == 0, done.stderr
    assert mesh.peers.seen.requests[-1].name == NAME


def test_logs_and_trace(mesh: Mesh) -> None:
    now = int(time.time())
    log = LogRecord(level="error", service="training", message="out of memory", trace_id="ab" * 16, span_id="s1")
    log.time.FromSeconds(now)
    span = Span(span_id="s1", name="train", service="training", kind="server")
    span.start_time.FromSeconds(now)
    mesh.peers.telemetry.logs, mesh.peers.telemetry.spans = [log], [span]
    done = tidemill(mesh, "logs", "level:error service:training", "--since", "1h")
    assert "out of memory" in done.stdout
    done = tidemill(mesh, "trace", "ab" * 16)
    assert "training" in done.stdout
    assert "out of memory" in done.stdout
    assert json.loads(tidemill(mesh, "trace", "ab" * 16, "--json").stdout)["spans"][0]["name"] == "train"


def test_following_logs_shows_each_line_once_after_an_outage_of_the_mesh(mesh: Mesh) -> None:
    first, second = (LogRecord(level="info", service="ingest", message=word) for word in ("one", "two"))
    for record in (first, second):
        record.time.FromSeconds(int(time.time()))
    before = LogRecord(level="info", service="ingest", message="zero")
    before.time.FromSeconds(first.time.seconds - 1)
    mesh.peers.telemetry.logs = [first, before]
    process = subprocess.Popen(
        [*HEEDING_INTERRUPTS, sys.executable, "-m", "gateway.cli.main", "logs", "--follow", "--json", "-n", "1"],
        env=environment(mesh.state) | {"TIDEMILL_ADDRESS": mesh.grpc},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        shown = process.stdout.readline() or process.communicate()
        assert json.loads(str(shown))["message"] == "one", shown
        mesh.peers.telemetry.away = True
        assert "does not answer; retrying" in process.stderr.readline()
        mesh.peers.telemetry.logs = [second, first, before]
        mesh.peers.telemetry.away = False
        shown = process.stdout.readline() or process.communicate()
        assert json.loads(str(shown))["message"] == "two", shown
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
        assert rest == ""
        assert process.returncode == 0, errors
    finally:
        mesh.peers.telemetry.away = False
        process.kill()


def test_keys(mesh: Mesh) -> None:
    database = f"sqlite:///{mesh.state / 'db' / 'gateway.sqlite'}"
    made = json.loads(tidemill(mesh, "keys", "create", "robot", "--json", "--database-url", database).stdout)
    assert made["key"].startswith("tm_")
    listed = tidemill(mesh, "keys", "list", "--json").stdout
    assert made["id"] in listed
    assert made["key"] not in listed
    assert tidemill(mesh, "keys", "revoke", made["id"]).returncode == 0
    done = tidemill(mesh, "keys", "revoke", "nothing")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("generate", "nothing", "x"), "No version of models/nothing is published", 1),
        (("generate", "headlines"), "Give either a text or --file", 2),
        (("generate", "headlines", "--file", "/nowhere"), "/nowhere cannot be read", 2),
        (("feedback", "a", "lovely"), "'lovely' is not good, bad or a number", 2),
        (("feedback", "a", "7"), "rating", 2),
        (("trace", "xyz"), "trace_id", 2),
        (("logs", "--since", "soon"), "is not a duration", 2),
        (("no-such-command",), "No such command", 2),
    ],
)
def test_errors_are_sentences(mesh: Mesh, arguments: tuple[str, ...], words: str, code: int) -> None:
    done = tidemill(mesh, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mesh_that_is_down_is_reported_with_what_to_do(tmp_path: Path) -> None:
    for arguments in (("models",), ("status",)):
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", *arguments],
            env=environment(tmp_path) | {"TIDEMILL_ADDRESS": "127.0.0.1:1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "tidemill up" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_keys_with_roles_rotate(mesh: Mesh) -> None:
    options = (
        "--role",
        "predict",
        "--expires",
        "30d",
        "--tenant",
        "acme",
        "--requests-per-s",
        "5",
        "--concurrent",
        "2",
    )
    made = json.loads(tidemill(mesh, "keys", "create", "robot", *options, "--json").stdout)
    assert (made["roles"], made["tenant"], made["requests_per_s"], made["concurrent"]) == (["predict"], "acme", 5, 2)
    assert made["expire_time"]
    rotated = json.loads(tidemill(mesh, "keys", "rotate", made["id"], "--overlap", "2h", "--json").stdout)
    assert (rotated["roles"], rotated["tenant"]) == (["predict"], "acme")
    assert rotated["key"] != made["key"]
    shown = tidemill(mesh, "keys", "list").stdout
    assert "predict" in shown
    assert "5/s, 2 at once" in shown
    assert httpx.get(f"http://{mesh.http}/v1/models", headers={"x-api-key": rotated["key"]}).status_code == 200

    def row() -> dict[str, object]:
        keys = json.loads(tidemill(mesh, "keys", "list", "--json").stdout)
        return next(key for key in keys if key["id"] == rotated["id"])

    used = wait_until(lambda: row() if row()["last_use_time"] else None, "the time of last use")
    assert (used["tenant"], used["expire_time"]) == ("acme", rotated["expire_time"])
    lines = tidemill(mesh, "keys", "list").stdout.splitlines()
    assert all(heading in lines[0] for heading in ("last used", "ends", "tenant"))
    line = next(line for line in lines if line.startswith(rotated["id"]))
    # Created, last used and ends, each as a day and a minute.
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d", line)) == 3, line
    assert "acme" in line
    done = tidemill(mesh, "keys", "create", "robot", "--role", "root")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "choose from read, predict, ingest, operate, admin" in done.stderr


def test_blank_lines_keep_their_rows(mesh: Mesh) -> None:
    given = "good\n\nbad\u2028line\n \nlast\n"
    shown = json.loads(tidemill(mesh, "predict", "reviews", "-", "--json", text=given).stdout)
    assert [prediction is not None for prediction in shown["predictions"]] == [True, False, True, False, True]
    assert list(mesh.peers.seen.requests[-1].texts) == ["good", "bad\u2028line", "last"]


def test_a_nucleus_of_nothing_is_refused(mesh: Mesh) -> None:
    done = tidemill(mesh, "generate", "headlines", "x", "--top-p", "0")
    assert (done.returncode, "--top-p must be greater than 0" in done.stderr) == (2, True)
