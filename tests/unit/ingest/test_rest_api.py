"""JSON APIs: pages by link, cursor and offset, what is new, secrets, busy servers, and answers that are wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.ingest.adapters import patient_http
from services.ingest.adapters.source_files.secrets import Secret, SourceSecrets
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import Position
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourceSpec, check_spec
from services.ingest.engine.formats.rest_api import RestApi
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from tests.sources import file_sources


class Api:
    """A server on loopback: answers by path and query; the last of several answers is repeated."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, dict[str, str], Any]]] = {}
        self.asked: list[tuple[str, str]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.asked.append((self.path, self.headers.get("Authorization", "")))
                found = api.answers.get(self.path, [(404, {}, {})])
                status, headers, body = found.pop(0) if len(found) > 1 else found[0]
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Not to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def put(self, path: str, body: Any, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(path, []).append((status, named, body))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(patient_http, "_FIRST_PAUSE_S", 0.001)
    made = Api()
    yield made
    made.close()


def pull(api: Api, kind: RestApi, position: Position | None = None, secrets: Path | None = None) -> list[Any]:
    sources = file_sources(hosts=[api.host], secrets=secrets)
    spec = SourceSpec("crm", kind)
    check_spec(spec)
    return list(sources.read(spec, sources.survey(spec, Interrupt()), Interrupt(), position))


def texts(found: list[Any]) -> list[str]:
    return [piece.text for piece in found if isinstance(piece, RawRecord)]


def items(*names: str) -> list[dict[str, str]]:
    return [{"id": name, "text": f"text of {name}"} for name in names]


def test_pages_by_link_header_cursor_url_and_offset(api: Api) -> None:
    api.put("/link", items("a", "b"), Link=f'<{api.url("/link?page=2")}>; rel="next", </x>; rel="last"')
    api.put("/link?page=2", items("c"))
    assert texts(pull(api, RestApi(api.url("/link"), id_field="id"))) == ["text of a", "text of b", "text of c"]

    api.put("/cursor?limit=2", {"data": {"items": items("a")}, "meta": {"next": "n&1"}})
    api.put("/cursor?limit=2&after=n%261", {"data": {"items": items("b")}, "meta": {"next": None}})
    kind = RestApi(
        api.url("/cursor?limit=2"), items_field="data.items", next_field="meta.next", cursor_parameter="after"
    )
    assert texts(pull(api, kind)) == ["text of a", "text of b"]

    api.put("/url", {"items": items("a"), "next": "/url?p=2"})
    api.put("/url?p=2", {"items": items("b"), "next": ""})
    assert texts(pull(api, RestApi(api.url("/url"), items_field="items", next_field="next"))) == [
        "text of a",
        "text of b",
    ]

    api.put("/offset", items("a", "b"))
    api.put("/offset?skip=2", items("c"))
    api.put("/offset?skip=3", [])
    assert len(pull(api, RestApi(api.url("/offset"), offset_parameter="skip"))) == 3


def test_an_item_that_is_not_a_record_is_refused_by_its_page_and_number(api: Api) -> None:
    api.put("/a", [{"text": "good"}, {"body": "x"}, 3])
    _, missing, scalar = pull(api, RestApi(api.url("/a")))
    assert isinstance(missing, Refusal)
    assert (missing.location, missing.reason) == (f"{api.url('/a')}: item 2", "MISSING_TEXT")
    assert isinstance(scalar, Refusal)
    assert scalar.reason == "NOT_AN_OBJECT"


def test_an_incremental_import_asks_for_what_is_new(api: Api) -> None:
    kind = RestApi(api.url("/a"), id_field="id", since_parameter="updated_after", since_field="at")
    api.put("/a", [{"id": 2, "text": "two", "at": "2026-02-01"}, {"id": 1, "text": "one", "at": "2026-01-01"}])
    position = Position()
    assert texts(pull(api, kind, position)) == ["two", "one"]
    assert position.reached() == {"since": "2026-02-01"}
    api.put("/a?updated_after=2026-02-01", [])
    again = Position(position.reached())
    assert pull(api, kind, again) == []
    assert again.reached() == {"since": "2026-02-01"}
    # Until all items were taken the position stays: an older one may be among those that were not.
    sources, part = file_sources(hosts=[api.host]), Position()
    spec = SourceSpec("crm", kind)
    next(sources.read(spec, sources.survey(spec, Interrupt()), Interrupt(), part))
    assert part.reached() == {}


def test_a_busy_server_is_asked_again_and_one_that_stays_so_fails_the_import(api: Api) -> None:
    api.put("/a", {}, 429, Retry_After="0")
    api.put("/a", {}, 503)
    api.put("/a", items("a"))
    assert texts(pull(api, RestApi(api.url("/a")))) == ["text of a"]
    assert len(api.asked) == 3
    api.put("/b", {}, 500)
    with pytest.raises(FailedPreconditionError, match="answers 500"):
        pull(api, RestApi(api.url("/b")))
    assert [path for path, _ in api.asked].count("/b") == 6
    api.put("/c", {}, 503, Retry_After="86400")
    with pytest.raises(FailedPreconditionError, match="asks to come again in 86400 s"):
        pull(api, RestApi(api.url("/c")))


def test_a_pause_ends_when_the_import_is_cancelled(api: Api) -> None:
    api.put("/a", {}, 429, Retry_After="250")
    sources, interrupt = file_sources(hosts=[api.host]), Interrupt()
    spec = SourceSpec("crm", RestApi(api.url("/a")))
    survey = sources.survey(spec, interrupt)
    threading.Timer(0.3, interrupt.set).start()
    with pytest.raises(InterruptedReadError):
        list(sources.read(spec, survey, interrupt))


@pytest.mark.parametrize(
    ("body", "options", "words"),
    [
        (b"{broken", {}, "page 1 ({url}): the page is not valid JSON"),
        ({"a": 1}, {}, "it is not a list; correct items_field"),
        ({"a": {"b": 1}}, {"items_field": "a.b"}, "its member 'a.b' is not a list"),
        ({"a": [], "next": {}}, {"items_field": "a", "next_field": "next"}, "'next' is neither text nor a number"),
        ({"a": [], "next": "?"}, {"items_field": "a", "next_field": "next"}, "leads to itself"),
        (
            [{"text": "x", "id": 1}],
            {"since_field": "at", "since_parameter": "at", "id_field": "id"},
            "'at' of an item is neither text",
        ),
        (
            [{"text": "x", "id": 1, "at": 1}, {"text": "x", "id": 2, "at": "b"}],
            {"since_field": "at", "since_parameter": "at", "id_field": "id"},
            "'at' is text of one item and a number of another",
        ),
    ],
)
def test_a_page_that_is_not_what_the_options_say_fails_by_its_address(
    api: Api, body: Any, options: dict[str, Any], words: str
) -> None:
    api.put("/a", body)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(api, RestApi(api.url("/a"), **options))
    assert words.replace("{url}", api.url("/a")) in caught.value.message


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (RestApi("/data/a.json"), "uri"),
        (RestApi("https://a/", cursor_parameter="c"), "next_field"),
        (RestApi("https://a/", next_field="n", offset_parameter="o"), "offset_parameter"),
        (RestApi("https://a/", since_parameter="s", id_field="id"), "since_field"),
        (RestApi("https://a/", since_parameter="s", since_field="at"), "id_field"),
    ],
)
def test_options_that_do_not_fit_are_named(kind: RestApi, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(SourceSpec("s", kind))
    assert [violation.field for violation in caught.value.violations] == [f"spec.rest_api.{field}"]


def secrets_file(folder: Path, url: str, mode: int = 0o600) -> Path:
    path = folder / "secrets.json"
    path.write_text(json.dumps({"crm": {"url": url, "value": "Bearer s3cret"}}))
    path.chmod(mode)
    return path


def test_a_secret_is_sent_below_its_url_and_nowhere_else(api: Api, tmp_path: Path) -> None:
    other = Api()
    try:
        api.put("/v1/a", items("a"), Link=f"<{other.url('/v1/b')}>; rel=next")
        other.put("/v1/b", items("b"), Link=f"<{api.url('/v10/c')}>; rel=next")
        api.put("/v10/c", items("c"), Link=f"<{api.url('/v1/d')}>; rel=next")
        # A redirect is judged by where it leads.
        api.put("/v1/d", {}, 302, Location=other.url("/v1/e"))
        other.put("/v1/e", items("e"))
        sources = file_sources(hosts=[api.host, other.host], secrets=secrets_file(tmp_path, api.url("/v1/")))
        spec = SourceSpec("crm", RestApi(api.url("/v1/a"), secret="crm"))
        found = list(sources.read(spec, sources.survey(spec, Interrupt()), Interrupt()))
        assert len(texts(found)) == 4
        assert api.asked == [("/v1/a", "Bearer s3cret"), ("/v10/c", ""), ("/v1/d", "Bearer s3cret")]
        assert [sent for _, sent in other.asked] == ["", ""]
    finally:
        other.close()


def test_a_secret_is_never_shown_and_its_file_is_for_its_owner_alone(api: Api, tmp_path: Path) -> None:
    assert "s3cret" not in repr(Secret("https://a/", "X", "s3cret"))
    with pytest.raises(FailedPreconditionError, match="can be read by other users; run chmod 600"):
        SourceSecrets(secrets_file(tmp_path, "https://a/", 0o644)).named("crm")
    path = secrets_file(tmp_path, "https://a/")
    with pytest.raises(FailedPreconditionError, match="has no secret 'other'"):
        SourceSecrets(path).named("other")
    path.write_text('{"crm": {"url": "https://a/", "value": "s3cret\\n"}')
    with pytest.raises(FailedPreconditionError) as caught:
        SourceSecrets(path).named("crm")
    assert "s3cret" not in caught.value.message
    with pytest.raises(FailedPreconditionError, match="set TIDEMILL_SOURCE_SECRETS_FILE"):
        pull(api, RestApi(api.url("/a"), secret="crm"))
    api.put("/a", {}, 401)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(api, RestApi(api.url("/a"), secret="crm"), secrets=secrets_file(tmp_path, api.url("/b/")))
    assert "answers 401; no secret was sent" in caught.value.message


def test_the_walls_of_sources_hold_on_every_page(api: Api) -> None:
    sources = file_sources()
    spec = SourceSpec("crm", RestApi(api.url("/a")))
    with pytest.raises(PermissionDeniedError, match="address or a port that sources may not use"):
        list(sources.read(spec, sources.survey(spec, Interrupt()), Interrupt()))
    api.put("/a", items("a"), Link="<http://169.254.169.254/latest>; rel=next")
    with pytest.raises(PermissionDeniedError):
        pull(api, RestApi(api.url("/a")))
    api.put("/b", items("a"), Link="<file:///etc/passwd>; rel=next")
    with pytest.raises(PermissionDeniedError):
        pull(api, RestApi(api.url("/b")))
