"""The dependency audit finds what is listed, and the lock has none of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from infra.audit.__main__ import (
    LIST,
    LOCK,
    findings,
    from_pip_audit,
    read_advisories,
    read_date,
    read_lock,
    report,
    why_unreachable,
)

_LIST = """
[[advisory]]
ids = ["CVE-1"]
package = "Some_Package"
affected = "<2.0"
[[advisory]]
ids = ["CVE-2"]
package = "other"
affected = ">=1,<1.5"
"""


def test_an_affected_version_is_found() -> None:
    locked = read_lock("some-package==1.9.9 ; python_version < '3.14' \\\n    --hash=sha256:0\nother==1.5\n")
    assert locked == {"some-package": "1.9.9", "other": "1.5"}
    assert [(each.ids, version) for each, version in findings(locked, read_advisories(_LIST))] == [
        (("CVE-1",), "1.9.9")
    ]


def test_every_listed_package_is_locked_so_that_no_name_is_misspelt() -> None:
    root = Path(__file__).parents[3]
    locked = read_lock((root / "requirements.lock").read_text())
    listed = read_advisories((root / "infra" / "audit" / "advisories.toml").read_text())
    assert {each.package for each in listed} <= locked.keys()


def test_the_lock_has_no_hole_of_the_list() -> None:
    text = LIST.read_text(encoding="utf-8")
    listed = read_advisories(text)
    assert report(read_lock(LOCK.read_text(encoding="utf-8")), listed, {}) == 0
    assert read_date(text) <= datetime.now(UTC).date()


class Mirror(BaseHTTPRequestHandler):
    """Answers as PyPI does, as a mirror without the database, or as one that knows no versions."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/whole/requests/2.19.0/json": (200, b'{"vulnerabilities": [{"id": "PYSEC-2018-28"}]}'),
        "/packages-only/requests/2.19.0/json": (200, b'{"vulnerabilities": []}'),
        "/page/requests/2.19.0/json": (200, b"<html>"),
    }

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def mirror() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_mirror_that_knows_no_holes_does_not_count_as_the_database(mirror: str) -> None:
    """Otherwise everything would pass: pip-audit succeeds where it could ask about nothing."""
    assert why_unreachable(f"{mirror}/whole") is None
    assert "without their vulnerabilities" in str(why_unreachable(f"{mirror}/packages-only"))
    assert why_unreachable(f"{mirror}/page")
    assert "404" in str(why_unreachable(f"{mirror}/nothing"))


def test_what_pip_audit_says_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    holes, skipped = from_pip_audit(
        {
            "dependencies": [
                {"name": "Some.Package", "version": "1.9", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"]}]},
                {"name": "good", "version": "1", "vulns": []},
                {"name": "unknown", "skip_reason": "not found"},
            ]
        }
    )
    assert skipped == ["unknown"]
    locked = {"some-package": "1.9", "good": "1", "unknown": "3"}
    assert report(locked, holes, {}) == 1
    assert "PYSEC-1, CVE-1" in capsys.readouterr().err
    assert report(locked, holes, {"CVE-1": "It is never called."}) == 0
    assert "It is never called." in capsys.readouterr().out
