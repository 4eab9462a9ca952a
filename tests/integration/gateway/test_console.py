"""The console over HTTP, against the whole gateway: who gets in, what forms need, what a role may, and the headers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from tidemill.cleaning.v1.cleaning_service_pb2 import ExplainRecordRequest
from tidemill.pipeline.v1.review_pb2 import REVIEW_ACTION_EDIT, REVIEW_ACTION_RELABEL
from tidemill.telemetry.v1.telemetry_service_pb2 import LogRecord, Span

from gateway.keys.key import Role
from tests.integration.gateway.conftest import Mesh
from tests.integration.gateway.console_peers import reviews
from tests.integration.gateway.fake_peers import ROLLOUT
from tests.unit.cli.cycles import running, succeeded
from tests.waiting import wait_for


def browser(mesh: Mesh) -> httpx.Client:
    """A client that keeps cookies, as a browser does."""
    return httpx.Client(base_url=f"http://{mesh.http}", headers={"origin": f"http://{mesh.http}"})


def sign_in(client: httpx.Client, key: str, person: str = "") -> httpx.Response:
    return client.post("/console/sign-in", data={"key": key, "person": person})


def token(page: httpx.Response) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page.text)
    assert found is not None, page.text
    return found[1]


@pytest.fixture
def client(mesh: Mesh) -> Iterator[httpx.Client]:
    """Someone who is signed in and may do everything."""
    with browser(mesh) as client:
        assert sign_in(client, mesh.key, "Anna").status_code == 303
        yield client


def test_a_key_opens_the_console_and_signing_out_closes_it(mesh: Mesh) -> None:
    with browser(mesh) as client:
        refused = client.get("/console")
        assert (refused.status_code, refused.headers["location"]) == (303, "/console/sign-in?next=/console")
        page = client.get(refused.headers["location"])
        assert page.status_code == 200
        entered = client.post(str(page.url), data={"key": mesh.key, "person": "Anna"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/console")
        cookie = entered.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/console"} <= set(cookie.split("; "))
        assert mesh.key not in cookie
        home = client.get("/console")
        assert home.status_code == 200
        assert ">Anna<" in home.text
        assert mesh.key not in home.text
        assert client.post("/console/sign-out", data={"form_token": token(home)}).status_code == 303
        assert client.get("/console").status_code == 303


@pytest.mark.parametrize("key", ["", "no key", f"tm_{'0' * 12}_{'0' * 64}", "<script>alert(1)</script>"])
def test_a_wrong_key_is_refused_and_not_repeated(mesh: Mesh, key: str) -> None:
    with browser(mesh) as client:
        refused = sign_in(client, key)
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        assert "This API key is not valid." in refused.text
        assert not key or key not in refused.text


def test_a_session_ends_with_its_key(mesh: Mesh) -> None:
    made, key = mesh.store.create("leaves", {Role.READ})
    with browser(mesh) as client:
        sign_in(client, key)
        assert client.get("/console").status_code == 200
        mesh.store.revoke(made.key_id)
        answer = wait_for(
            lambda: client.get("/console"), lambda found: found.status_code != 200, "the end of a session"
        )
        assert answer.headers["location"] == "/console/sign-in?next=/console&ended=1"


def test_a_cookie_that_was_changed_is_refused(mesh: Mesh, client: httpx.Client) -> None:
    cookie = client.cookies["tidemill_console"]
    content, _, signature = cookie.partition(".")
    for forged in ("", "x", f"{content}.", f"{content}.{signature[:-1]}0x", f"{content[:-2]}.{signature}", "é.é"):
        headers = {b"cookie": f"tidemill_console={forged}".encode()}
        assert httpx.get(f"http://{mesh.http}/console", headers=headers).status_code == 303, forged
    # A session is for people: no door takes it, and the console takes no key of a header.
    assert (
        httpx.get(f"http://{mesh.http}/v1/models", headers={"cookie": f"tidemill_console={cookie}"}).status_code == 401
    )
    assert httpx.get(f"http://{mesh.http}/console", headers={"x-api-key": mesh.key}).status_code == 303


def test_forms_of_other_pages_are_refused(mesh: Mesh, client: httpx.Client) -> None:
    good = token(client.get("/console"))
    for headers, form in (
        ({"origin": "https://evil.example.com"}, {"form_token": good}),
        ({"origin": "null"}, {"form_token": good}),
        ({"sec-fetch-site": "cross-site"}, {"form_token": good}),
        ({}, {"other": "x"}),
        ({}, {"form_token": "0" * 64}),
    ):
        refused = client.post("/console/sign-out", data=form, headers=headers)
        assert refused.status_code == 403, (headers, form)
    with browser(mesh) as other:
        sign_in(other, mesh.key)
        assert client.post("/console/sign-out", data={"form_token": token(other.get("/console"))}).status_code == 403
    assert client.get("/console").status_code == 200
    foreign = {"origin": "https://evil.example.com"}
    assert client.post("/console/sign-in", data={"key": mesh.key}, headers=foreign).status_code == 403


def test_strangers_send_short_forms_only(mesh: Mesh) -> None:
    with browser(mesh) as client:
        assert client.post("/console/sign-in", data={"key": "k" * 5000}).status_code == 413
        assert client.post("/console/sign-in", json={"key": mesh.key}).status_code == 400
        # Short forms that no one reads do not cost the connection.
        for path, status in (("/console", 404), ("/console/pipelines/p/pause", 303), ("/console/sign-out", 303)):
            answer = client.post(path, data={"key": "k"})
            assert (answer.status_code, answer.headers.get("connection")) == (status, None), path
        assert "connection" not in client.get("/console/sign-in").headers
        assert "connection" not in sign_in(client, mesh.key).headers


def test_every_answer_has_the_headers(client: httpx.Client) -> None:
    home = client.get("/console")
    files = set(re.findall(r'(?:href|src)="(/console/static/[^"]+)"', home.text))
    assert len(files) == 3
    for path in ("/console", "/console/sign-in", "/console/nothing", *files):
        answer = client.get(path)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        kept = answer.headers["cache-control"]
        assert kept == ("public, max-age=31536000, immutable" if path in files else "no-store")
        # What the policy forbids is not there.
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son[a-z]+=|javascript:", answer.text) or path in files


def test_signing_in_continues_inside_the_console_only(mesh: Mesh) -> None:
    with browser(mesh) as client:
        for target, place in (
            ("/console/audit", "/console/audit"),
            ("https://evil.example.com", "/console"),
            ("//evil.example.com/console", "/console"),
            ("/console//evil", "/console"),
            ("/consoleevil", "/console"),
            ("/v1/models", "/console"),
            ("/console/%0d%0aset-cookie: a=b", "/console"),
        ):
            page = client.get("/console/sign-in", params={"next": target})
            assert f'action="/console/sign-in?next={place}"' in page.text
            entered = client.post("/console/sign-in", params={"next": target}, data={"key": mesh.key})
            assert entered.headers["location"] == place


def test_a_loop_and_its_cycle(mesh: Mesh, client: httpx.Client) -> None:
    mesh.peers.pipeline.states = [succeeded()]
    home = client.get("/console")
    assert 'href="/console/pipelines/headlines"' in home.text
    page = client.get("/console/pipelines/headlines")
    assert "12 of 60 corrections are there." in page.text
    cycle = client.get(re.findall(r'href="(/console/pipelines/headlines/cycles/[^"]+)"', page.text)[0])
    assert "over the base model" in cycle.text


def test_pausing_carries_who_and_why_and_shows_it(mesh: Mesh, client: httpx.Client) -> None:
    form = {"form_token": token(client.get("/console/pipelines/headlines")), "reason": "holidays", "request_id": "r1"}
    done = client.post("/console/pipelines/headlines/pause", data=form)
    assert (done.status_code, done.headers["location"]) == (303, "/console/pipelines/headlines?note=paused")
    seen = mesh.peers.seen
    assert (seen.requests[-1].reason, seen.requests[-1].request_id) == ("holidays", "r1")
    assert seen.metadata[-1]["x-tidemill-key"] == mesh.key.split("_")[1]
    assert "Paused: holidays" in client.get(done.headers["location"]).text
    client.post("/console/pipelines/headlines/resume", data=form)
    assert "Paused: holidays" not in client.get("/console/pipelines/headlines").text


@pytest.mark.parametrize(
    ("role", "sees", "orders"), [(Role.READ, 200, 403), (Role.OPERATE, 200, 303), (Role.PREDICT, 200, 403)]
)
def test_a_page_may_what_the_role_of_its_key_may(mesh: Mesh, role: Role, sees: int, orders: int) -> None:
    mesh.peers.pipeline.states = [running()]
    _, key = mesh.store.create("one", {role})
    with browser(mesh) as client:
        sign_in(client, key)
        page = client.get("/console/pipelines/headlines")
        assert page.status_code == sees
        assert ("Pause its triggers" in page.text) is (orders == 303)
        assert ("needs the role operate or read" in page.text) is (role is Role.PREDICT)
        before = len(mesh.peers.seen.requests)
        for path in ("pipelines/headlines/pause", "pipelines/headlines/resume", "pipelines/headlines/cycles/c1/cancel"):
            answer = client.post(f"/console/{path}", data={"form_token": token(page)})
            assert answer.status_code == orders, path
        assert len(mesh.peers.seen.requests) == before + (3 if orders == 303 else 0)


def test_cancelling_asks_first(mesh: Mesh, client: httpx.Client) -> None:
    mesh.peers.pipeline.states = [running()]
    page = client.get("/console/pipelines/headlines/cycles/01jtest")
    asked = client.get(re.findall(r'href="([^"]+/cancel)"', page.text)[0])
    assert "Cancel this cycle?" in asked.text
    done = client.post(str(asked.url), data={"form_token": token(asked), "request_id": "r2"})
    assert done.status_code == 303
    assert mesh.peers.seen.requests[-1].name == "pipelines/headlines/cycles/01jtest"


def test_a_rollout_is_frozen_and_rolled_back_by_who_may(mesh: Mesh, client: httpx.Client) -> None:
    page = client.get("/console/rollouts")
    place = re.findall(rf'href="(/console/{ROLLOUT})"', page.text)[0]
    asked = client.get(f"{place}/roll-back")
    assert "all users get the version before" in asked.text
    request_id = re.findall(r'name="request_id" value="([^"]+)"', asked.text)[0]
    form = {"form_token": token(asked), "request_id": request_id, "reason": "疑似错误"}
    done = client.post(f"{place}/roll-back", data=form)
    assert (done.status_code, done.headers["location"]) == (303, f"{place}?note=rolledback")
    seen = mesh.peers.seen.requests[-1]
    assert (seen.name, seen.reason, seen.request_id) == (ROLLOUT, "疑似错误", request_id)
    assert "Rolled back." in client.get(done.headers["location"]).text
    assert client.post(f"{place}/freeze", data=form).status_code == 303
    assert client.post(f"{place}/nothing", data=form).status_code == 404
    _, key = mesh.store.create("reader", {Role.READ})
    with browser(mesh) as reader:
        sign_in(reader, key)
        shown = reader.get(place)
        assert "/roll-back" not in shown.text
        refused = reader.post(f"{place}/roll-back", data={"form_token": token(shown)})
        assert refused.status_code == 403
        assert "needs the role operate" in refused.text


def test_the_audit_trail_is_narrowed_and_paged(mesh: Mesh, client: httpx.Client) -> None:
    page = client.get("/console/audit", params={"resource": ROLLOUT})
    assert mesh.peers.seen.requests[-1].resource == ROLLOUT
    older = re.findall(r'href="([^"]+after=1)"', page.text)[0].replace("&amp;", "&")
    client.get(older)
    assert (mesh.peers.seen.requests[-1].page_token, mesh.peers.seen.requests[-1].resource) == ("1", ROLLOUT)


def test_the_queue_is_reviewed_answer_by_answer(mesh: Mesh, client: httpx.Client) -> None:
    mesh.peers.reviews.queue = reviews()
    assert "Review the next answer" in client.get("/console/reviews").text
    first = client.get("/console/reviews/next")
    assert mesh.peers.seen.requests[-1].reviewer == "Anna"
    form = {"form_token": token(first), "answer": "answers/01jwriter", "given": "Rates rise again", "request_id": "r"}
    unchanged = client.post("/console/reviews/next", data={**form, "action": "edit", "target": "Rates rise again"})
    assert (unchanged.status_code, "change it, or accept it" in unchanged.text) == (400, True)
    edit = {"action": "edit", "target": "Rates\r\nrise <again>", "comment": " tone "}
    done = client.post("/console/reviews/next", data={**form, **edit})
    assert (done.status_code, done.headers["location"]) == (303, "/console/reviews/next?note=decided")
    sent = mesh.peers.seen.requests[-1]
    assert (sent.answer, sent.reviewer, sent.action) == ("answers/01jwriter", "Anna", REVIEW_ACTION_EDIT)
    assert (sent.target, sent.comment, sent.request_id) == ("Rates\nrise <again>", "tone", "r")
    second = client.get(done.headers["location"])
    assert "01jclassifier" in second.text
    assert 'value="negative"' in second.text
    client.post("/console/reviews/next", data={**form, "answer": "answers/01jclassifier", "label": "negative"})
    sent = mesh.peers.seen.requests[-1]
    assert (sent.answer, sent.action, sent.target) == ("answers/01jclassifier", REVIEW_ACTION_RELABEL, "negative")
    assert "Nothing is left to review." in client.get("/console/reviews/next").text
    assert client.post("/console/reviews/next", data={**form, "action": "nothing"}).status_code == 400


def test_a_decision_that_came_too_late_says_so_beside_the_next_answer(mesh: Mesh, client: httpx.Client) -> None:
    mesh.peers.reviews.queue = reviews()[1:]
    form = {"form_token": token(client.get("/console/reviews")), "answer": "answers/01jwriter", "action": "accept"}
    late = client.post("/console/reviews/next", data=form)
    assert late.status_code == 400
    assert "Someone else has decided." in late.text
    assert "01jclassifier" in late.text


def test_answers_of_people_are_reviewed_by_operators_only(mesh: Mesh) -> None:
    _, key = mesh.store.create("reader", {Role.READ})
    with browser(mesh) as reader:
        sign_in(reader, key)
        page = reader.get("/console/reviews")
        assert "Review the next answer" not in page.text
        assert "ListReviews needs the role operate" in page.text
        assert "Cohen’s kappa" in page.text
        assert reader.get("/console/reviews/next").status_code == 403
        form = {"form_token": token(page), "answer": "answers/01jwriter", "action": "accept"}
        assert reader.post("/console/reviews/next", data=form).status_code == 403


def test_an_answer_leads_to_its_data_and_a_record_to_its_models(mesh: Mesh, client: httpx.Client) -> None:
    found = client.get("/console/answers", params={"id": " answers/01jwriter "})
    page = client.get(found.headers["location"])
    assert "corrected" in page.text
    assert "of another answer" not in page.text
    version = client.get(re.findall(r'href="(/console/models/headlines/versions/3)"', page.text)[0])
    # Its run cannot be read here; what else is known is shown.
    assert "The training service does not answer" in version.text
    data = client.get(re.findall(r'href="(/console/datasets/headlines/versions/7)"', version.text)[0])
    assert "rejected: exact duplicate" in data.text
    assert 'href="/console/models/headlines/versions/3"' in data.text
    record = client.get("/console/records", params={"record": "sources/bbc/records/r1"})
    asked = next(each for each in reversed(mesh.peers.seen.requests) if isinstance(each, ExplainRecordRequest))
    assert (asked.record_id, asked.source) == ("r1", "bbc")
    assert 'href="/console/models/headlines/versions/3"' in record.text
    assert client.get("/console/answers", params={"id": "../models"}).status_code == 400
    for path in ("models", "models/headlines", "models/reviews", "datasets", "datasets/headlines"):
        assert client.get(f"/console/{path}").status_code == 200, path
    assert client.get("/console/models/headlines/versions/99").status_code == 404
    assert client.get("/console/models/none").status_code == 200  # the fake has one route for all
    assert client.get("/console/runs/r1").status_code == 503


def test_originals_and_answers_are_shown_to_operators_only(mesh: Mesh) -> None:
    _, key = mesh.store.create("reader", {Role.READ})
    with browser(mesh) as reader:
        sign_in(reader, key)
        assert "/console/records" not in reader.get("/console/datasets").text
        assert "/console/answers" not in reader.get("/console/models").text
        assert reader.get("/console/records", params={"record": "r1"}).status_code == 403
        assert reader.get("/console/answers/01jwriter").status_code == 403


def test_logs_lead_to_their_trace(mesh: Mesh, client: httpx.Client) -> None:
    line = LogRecord(level="error", service="training", message="<b>no</b>", trace_id="ab" * 16)
    line.time.FromSeconds(1_790_000_000)
    mesh.peers.telemetry.logs = [line]
    mesh.peers.telemetry.spans = [Span(span_id="s1", name="CreateRun", service="training")]
    page = client.get("/console/logs", params={"query": "level:error"})
    assert "&lt;b&gt;no&lt;/b&gt;" in page.text
    assert 'value="level:error"' in page.text
    trace = client.get(re.findall(r'href="(/console/traces/[0-9a-f]{32})"', page.text)[0])
    assert "CreateRun" in trace.text
    mesh.peers.telemetry.spans = []
    assert client.get("/console/traces/" + "0" * 32).status_code == 404
