"""`tidemill dlq` as a person starts it, through the gateway, on the real use cases."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.test_cli import tidemill


@pytest.fixture
def mesh_with_letters(mesh: Mesh) -> Iterator[Mesh]:
    log = mesh.peers.letters
    log.letters.clear()
    log.begin += 100
    for _ in range(3):
        log.add()
    log.add(topic="", import_name="imports/i", location="/data/a.jsonl:7", reason="LINE_TOO_LONG", content=b"\x1b[31m")
    log.sent.clear()
    yield mesh
    log.letters.clear()


def test_refused_messages_are_listed_shown_replayed_and_dropped(mesh_with_letters: Mesh) -> None:
    mesh, log = mesh_with_letters, mesh_with_letters.peers.letters
    first, second, _, piece = (letter.offset for letter in log.letters)
    listed = tidemill(mesh, "dlq", "list")
    assert listed.returncode == 0, listed.stderr
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [row[0] for row in rows[1:5]] == [str(piece), str(piece - 1), str(second), str(first)]
    assert rows[2][3:6] == ["ingest", f"tidemill.inbound[3]@{100 + piece - 1}", "INVALID_JSON"]
    assert rows[-1] == ["4", "shown;", "4", "open", "in", "all."]

    shown = tidemill(mesh, "dlq", "show", str(first))
    assert f"text {first}" in shown.stdout
    assert "header ce_id" in shown.stdout
    assert tidemill(mesh, "dlq", "show", str(first), "--raw").stdout == f"text {first}"
    # What was refused cannot write to the terminal.
    assert "\\x1b[31m" in tidemill(mesh, "dlq", "show", str(piece)).stdout

    replayed = tidemill(mesh, "dlq", "replay", "--reason", "INVALID_JSON", "--until", "1d")
    assert (replayed.returncode, replayed.stdout) == (0, "3 replayed.\n")
    assert [letter.offset for letter in log.sent] == [first, second, second + 1]
    refused = tidemill(mesh, "dlq", "replay", str(first), str(piece))
    assert refused.returncode == 1
    assert "0 replayed." in refused.stdout
    assert "ALREADY_REPLAYED" in refused.stdout
    assert "Correct /data/a.jsonl:7 and run the pipeline again" in refused.stdout

    dropped = tidemill(mesh, "dlq", "drop", "--all")
    assert (dropped.returncode, dropped.stdout) == (0, "1 dropped.\n")
    found = json.loads(tidemill(mesh, "dlq", "ls", "--state", "all", "--json").stdout)
    assert [letter["state"] for letter in found["dead_letters"]] == ["STATE_DROPPED", *["STATE_REPLAYED"] * 3]
    # The test's API key decided, not a name of the caller's choice.
    assert all(letter["actor"].startswith("key:") for letter in found["dead_letters"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("replay",), "Give numbers of letters, or a filter such as --reason, or --all."),
        (("drop", "5", "--all"), "Give numbers of letters"),
        (("list", "--since", "yesterday"), "--since 'yesterday' is not a duration"),
        (("show", "99999"), "There is no dead letter 'dead-letters/99999'"),
        (("show", "../5"), "name"),
    ],
)
def test_what_is_asked_wrongly_is_named(mesh: Mesh, arguments: tuple[str, ...], message: str) -> None:
    done = tidemill(mesh, "dlq", *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
