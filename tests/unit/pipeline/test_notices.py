"""Decisions reach people: a webhook and a mail server that are real, and that fail."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import UnavailableError
from services.pipeline.adapters.notifiers import LogNotifier, MailNotifier, Notifiers, WebhookNotifier
from services.pipeline.app.notices import Notices
from tests.conftest import OpenDatabase
from tests.unit.pipeline.rollout_world import World


@pytest.fixture
def world(open_service_database: OpenDatabase) -> World:
    return World(open_service_database("pipeline"))


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def webhook(statuses: list[int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers with these statuses in turn, then with 200; what it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}/hook", got


@contextmanager
def mail_server() -> Iterator[tuple[str, list[str]]]:
    """Takes mails by SMTP (RFC 5321); what it got, as text."""
    got: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 test\r\n")
            for line in self.rfile:
                verb = line[:4].upper()
                if verb == b"DATA":
                    self.wfile.write(b"354 go\r\n")
                    text = b""
                    while (part := self.rfile.readline()) != b".\r\n":
                        text += part
                    got.append(text.decode())
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    with serving(socketserver.TCPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"127.0.0.1:{port}", got


async def test_each_decision_is_sent_once_to_all_receivers(world: World) -> None:
    name = await world.begin()
    await world.settle()
    with webhook([]) as (url, posted), mail_server() as (address, mails):
        mail = MailNotifier(address, "mesh@example.org", ["anna@example.org", "ben@example.org"])
        notices = Notices(world.audit, Notifiers([WebhookNotifier(url), mail, LogNotifier()]), world.clock)
        notices.send_pending()
        notices.send_pending()
    assert [(item["action"], item["resource"]) for item in posted] == [
        ("rollout.create", name),
        ("rollout.begin", name),
    ]
    assert posted[1]["facts"]["step"] == "shadow"
    assert posted[1]["reason"] in posted[1]["text"]
    assert len(mails) == 2
    assert f"Subject: Tidemill: rollout.begin on {name}" in mails[1]
    assert "To: anna@example.org, ben@example.org" in mails[1]
    assert "is introduced beside" in mails[1].replace("=\r\n", "").replace("\r\n", " ")


@pytest.mark.parametrize("status", [500, 302])
async def test_what_cannot_be_sent_now_is_sent_later_and_given_up_after_a_day(
    world: World, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    await world.begin()
    with webhook([status, 200, status]) as (url, posted):
        notices = Notices(world.audit, Notifiers([WebhookNotifier(url)]), world.clock)
        with pytest.raises(UnavailableError, match=str(status)):
            notices.send_pending()
        notices.send_pending()
        assert len({item["name"] for item in posted}) == 1
        await world.settle()
        world.clock.time += timedelta(days=2)
        notices.send_pending()
        assert "was never sent" in caplog.text
        assert not list(world.audit.unsent(10))


async def test_no_password_is_sent_in_plain_text(world: World, tmp_path: Path) -> None:
    await world.begin()
    (entry,) = world.audit.unsent(10)
    password = tmp_path / "password"
    password.write_text("secret")
    with mail_server() as (address, mails), pytest.raises(UnavailableError, match="STARTTLS"):
        MailNotifier(address, "a@b", ["c@d"], "mesh", password).send(entry)
    assert mails == []


async def test_a_receiver_that_is_not_there_is_said_without_its_secret(world: World) -> None:
    await world.begin()
    (entry,) = world.audit.unsent(10)
    with pytest.raises(UnavailableError) as caught:
        WebhookNotifier("http://127.0.0.1:1/secret-token").send(entry)
    assert "secret-token" not in caught.value.message
    with pytest.raises(UnavailableError, match="TIDEMILL_NOTIFY_SMTP"):
        MailNotifier("127.0.0.1:1", "a@b", ["c@d"]).send(entry)
