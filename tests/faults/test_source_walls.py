"""Limits of what imports may read: addresses, files, archives, and sources that do not answer.

The servers are real and listen on loopback. If a test needs a public address, its look-up returns one; nothing is ever
sent there.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from services.ingest.adapters.source_files.local import LocalFiles
from services.ingest.adapters.source_files.port import ReadLimits
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.domain.source_import import SourceSpec, check_spec
from services.ingest.domain.source_uri import UriRefusedError, parse_uri, shown
from services.ingest.engine.formats import make_format, names
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.engine.formats.text_folder import TextFolder
from services.ingest.settings import IngestSettings
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError, TidemillError
from services.kit.network_rules import NetworkRules
from services.kit.network_wall import AddressInfo
from services.kit.source_roots import add_roots, read_roots
from tests.examples import examples
from tests.sources import file_sources, pull, texts
from tests.waiting import wait_until

LINE = b'{"text": "x"}\n'


class Server:
    """An HTTP server that counts what reaches it; `answers` are headers and body by path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.headers.append(dict(self.headers))
                status, headers, body = outer.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.answers["/a.jsonl"] = (200, {"Content-Length": str(len(LINE))}, LINE)
    yield made
    made.stop()


@contextmanager
def silent_server() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        held: list[socket.socket] = []

        def hold() -> None:
            while True:
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=hold, daemon=True).start()
        yield listening.getsockname()[1], held
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def spec(uri: str) -> SourceSpec:
    return SourceSpec("s", JsonLines(uri))


def addresses(*found: str) -> Callable[[str, int], Sequence[AddressInfo]]:
    """A look-up that returns these addresses, one per call; the last one for all further calls."""
    left = list(found)

    def look_up(host: str, port: int) -> Sequence[AddressInfo]:
        address = left.pop(0) if len(left) > 1 else left[0]
        return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    return look_up


@pytest.mark.parametrize(
    "uri",
    [
        "reference::http://127.0.0.1:{port}/a.jsonl",
        "reference::file:///dev/zero",
        "zip::http://127.0.0.1:{port}/a.jsonl",
        "tar::http://127.0.0.1:{port}/a.jsonl",
        "simplecache::http://127.0.0.1:{port}/a.jsonl",
        "http://127.0.0.1:{port}/a%3A%3Ab.jsonl",
        "http://127.0.0.1:{port}/a%253A%253Ab.jsonl",
        "/data/*%3a:b.jsonl",
        "file:///data/a::b",
        "memory://x/a.jsonl",
        "ftp://127.0.0.1/a.jsonl",
        "github://o:r@/a.jsonl",
        "HTTP+unix://%2Frun%2Fdocker.sock/a",
        "data:application/json,%7B%7D",
        "jar:file:///a",
        "file://127.0.0.1/etc/passwd",
        "file:///data/../etc/passwd",
        "file:///data/%2e%2e/etc/passwd",
        "/data/%00",
        "http://user:secret@127.0.0.1:{port}/a.jsonl",
        "http://127.0.0.1:{port}\\@example.com/a",
        "http:///a.jsonl",
        "http://127.0.0.1:0/a.jsonl",
        "http://[::1/a",
        "s3://user@bucket/x",
        "s3://arn:aws:s3:eu:1:accesspoint/x/y",
        "data.jsonl",
    ],
)
def test_an_address_of_another_form_is_refused_before_anything_is_sent(server: Server, uri: str) -> None:
    wanted = spec(uri.replace("{port}", str(server.port)))
    sources = file_sources("/", hosts=["127.0.0.1:*"])
    for attempt in (lambda: check_spec(wanted), lambda: sources.survey(wanted, Interrupt())):
        with pytest.raises(InvalidArgumentError) as caught:
            attempt()
        assert [item.field for item in caught.value.violations] == ["spec.json_lines.uri"]
        assert "secret" not in caught.value.message
    assert server.asked == []


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    "uri",
    [
        "reference::http://127.0.0.1:{port}/a",
        "zip::http://127.0.0.1:{port}/a",
        "ftp://127.0.0.1/a",
        "http://user:secret@127.0.0.1:{port}/a",
        "file:///data/%2e%2e/etc",
        "relative",
    ],
)
def test_no_format_reads_an_address_of_another_form(server: Server, name: str, uri: str) -> None:
    wanted = SourceSpec("s", make_format(name, {"uri": uri.replace("{port}", str(server.port))}))
    sources = file_sources("/", hosts=["127.0.0.1:*"])
    for attempt in (lambda: check_spec(wanted), lambda: sources.survey(wanted, Interrupt())):
        with pytest.raises(InvalidArgumentError) as caught:
            attempt()
        assert f"spec.{name}.uri" in [item.field for item in caught.value.violations]
        assert "secret" not in caught.value.message
    assert server.asked == []


@pytest.mark.parametrize("name", names())
def test_no_format_reads_outside_the_roots_or_calls_this_machine(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    sources = file_sources(str(tmp_path / "root"))
    for uri in (str(tmp_path / "outside"), "/proc/self", "/etc", server.url("/a.jsonl"), "s3://bucket/a"):
        with pytest.raises((PermissionDeniedError, InvalidArgumentError)):
            pull(sources, SourceSpec("s", make_format(name, {"uri": uri})))
    assert server.asked == []


@examples(1000)
@given(
    st.text("htps:/fil3@#?[]%2e.\\ :\t\n*&;\u3002\uff0fé1", max_size=30).map(lambda text: f"http://{text}")
    | st.from_regex(r"(https?|HTTP)://[a-z0-9.@:#?/%\[\]-]{1,30}", fullmatch=True)
    | st.text(max_size=30)
)
def test_the_address_that_is_judged_is_the_one_that_is_asked(text: str) -> None:
    """If our parser and the client's read an address differently, the check could be bypassed."""
    try:
        parsed = parse_uri(text)
    except UriRefusedError:
        return
    assert parsed.scheme in ("file", "http", "https", "s3")
    if parsed.scheme == "file":
        assert parsed.path.startswith("/")
        assert ".." not in parsed.path.split("/")
    if not parsed.is_http:
        return
    try:
        asked = URL(text.partition("#")[0])
    except ValueError:
        return
    assert (asked.scheme, asked.port, asked.user) == (parsed.scheme, parsed.port, None)
    assert (asked.host or "").rstrip(".") == parsed.host or not parsed.host.isascii()


def test_a_pattern_is_held_against_the_same_rules() -> None:
    for pattern in ("../*", "a::b", "a%3A%3Ab", "/etc/*"):
        with pytest.raises(InvalidArgumentError) as caught:
            check_spec(SourceSpec("s", TextFolder("/data", pattern)))
        assert [item.field for item in caught.value.violations] == ["spec.text_folder.pattern"]


def test_without_roots_no_file_is_read_and_with_them_only_what_lies_below(tmp_path: Path) -> None:
    for name in ("open/a.txt", "open/deep/b.txt", "open-not/b.txt", "secret.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "open" / "a.jsonl").write_bytes(LINE)
    allowed = file_sources(f"{tmp_path}/open/", "s3://bucket/x")
    for kind in (
        TextFolder(f"{tmp_path}/open"),
        TextFolder(f"{tmp_path}/./open", "deep/*.txt"),
        JsonLines(f"{tmp_path}/open/*.jsonl"),
        JsonLines(f"{tmp_path}/open/**/*.jsonl"),
    ):
        assert pull(allowed, SourceSpec("s", kind))
        with pytest.raises(PermissionDeniedError):
            file_sources().survey(SourceSpec("s", kind), Interrupt())
    for kind in (
        TextFolder(f"{tmp_path}/open-not"),
        TextFolder(str(tmp_path)),
        TextFolder(f"{tmp_path}/nowhere"),
        JsonLines("/etc/passwd"),
        JsonLines("/etc/ssh/*"),
        JsonLines("/etc/*_config"),
        JsonLines(f"{tmp_path}/*/b.txt"),
        TextFolder("s3://bucket/xy"),
        TextFolder("s3://other/x"),
    ):
        with pytest.raises(PermissionDeniedError) as caught:
            allowed.survey(SourceSpec("s", kind), Interrupt())
        assert caught.value.violations[0].field.endswith(".uri")
        assert "TIDEMILL_SOURCE_ROOTS" in caught.value.message


def test_what_a_root_of_everything_still_does_not_read() -> None:
    sources = file_sources("/")
    for uri in ("/proc/self/environ", "/proc/self/fd/0", "/sys/kernel/notes", "/dev/zero", "/dev/fd/0"):
        with pytest.raises((PermissionDeniedError, InvalidArgumentError)):
            pull(sources, spec(uri))


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.txt").write_text("secret")
    for link, target in (("file.txt", "secret/a.txt"), ("folder", "secret")):
        path = tmp_path / "open" / link
        path.symlink_to(tmp_path / target)
        with pytest.raises(PermissionDeniedError):
            file_sources(tmp_path / "open").survey(SourceSpec("s", TextFolder(f"{tmp_path}/open")), Interrupt())
        path.unlink()


def test_a_link_exchanged_after_the_check_is_found_at_the_opening(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    path = tmp_path / "open" / "a.jsonl"
    path.write_bytes(LINE)
    (tmp_path / "secret").write_bytes(b'{"text": "secret"}\n')
    sources, wanted = file_sources(tmp_path / "open"), spec(str(path))
    survey = sources.survey(wanted, Interrupt())
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(PermissionDeniedError):
        list(sources.read(wanted, survey, Interrupt()))
    path.unlink()
    os.mkfifo(path)
    # Opening the pipe would block for ever.
    with pytest.raises(InvalidArgumentError) as caught:
        list(sources.read(wanted, survey, Interrupt()))
    assert "not a regular file" in caught.value.message


@pytest.mark.parametrize(
    ("address", "port", "permitted"),
    [
        ("93.184.216.34", 80, True),
        ("93.184.216.34", 443, True),
        ("93.184.216.34", 22, False),
        ("2606:2800:220:1:248:1893:25c8:1946", 443, True),
        ("127.0.0.1", 80, False),
        ("127.8.9.1", 80, False),
        ("0.0.0.0", 80, False),
        ("10.1.2.3", 80, False),
        ("172.16.0.1", 80, False),
        ("192.168.1.1", 443, False),
        ("100.64.0.1", 80, False),
        ("100.100.100.200", 80, False),
        ("169.254.169.254", 80, False),
        ("168.63.129.16", 80, False),
        ("192.0.0.192", 80, False),
        ("224.0.0.1", 80, False),
        ("224.0.1.1", 80, False),
        ("240.0.0.1", 80, False),
        ("255.255.255.255", 80, False),
        ("::1", 80, False),
        ("::", 80, False),
        ("fe80::1%eth0", 80, False),
        ("fc00::1", 80, False),
        ("fd00:ec2::254", 80, False),
        ("fec0::1", 80, False),
        ("ff02::1", 80, False),
        ("::ffff:127.0.0.1", 80, False),
        ("::ffff:93.184.216.34", 80, True),
        ("::127.0.0.1", 80, False),
        ("2002:7f00:1::", 80, False),
        ("2002:a9fe:a9fe::", 80, False),
        ("64:ff9b::7f00:1", 80, False),
        ("64:ff9b::a9fe:a9fe", 80, False),
        ("64:ff9b::5db8:d822", 80, True),
        ("64:ff9b:1::7f00:1", 80, False),
        ("2001:0:7f00:1::", 80, False),
    ],
)
def test_only_public_addresses_at_the_usual_ports(address: str, port: int, permitted: bool) -> None:
    assert NetworkRules().permits(address, port) is permitted


def test_what_the_operator_names_is_allowed_and_no_more() -> None:
    rules = NetworkRules(
        ["minio.internal:9000", "10.0.0.0/8", "[fd12::/16]:*", "169.254.7.7:8080", "files.example.org"]
    )
    assert rules.permits("10.1.2.3", 80)
    assert rules.permits("::ffff:10.1.2.3", 80)
    assert not rules.permits("10.1.2.3", 8080)
    assert not rules.permits("192.168.1.1", 80)
    assert rules.permits("fd12::5", 1234)
    assert rules.permits("169.254.7.7", 8080)
    assert not rules.permits("169.254.7.8", 8080)
    assert rules.names("minio.internal", 9000)
    assert not rules.names("minio.internal", 80)
    assert rules.names("files.example.org", 443)
    # A named host may have a private address, but never that of the cloud's metadata service.
    assert rules.permits("192.168.1.1", 9000, named=True)
    assert not rules.permits("169.254.169.254", 80, named=True)
    for wrong in ("http://x", "a b", "10.0.0.0/33", "host:0", "host:99999", "fd12::1", "[x]:1"):
        with pytest.raises(ValueError, match=r"is not a host|port|brackets"):
            NetworkRules([wrong])
    with pytest.raises(ValueError, match="port"):
        IngestSettings.model_validate({"source_hosts": "host:0"})
    with pytest.raises(ValueError, match="relative"):
        IngestSettings.model_validate({"source_roots": "/data,here"})


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_nothing_reaches_this_machine_however_it_is_spelt(server: Server, host: str) -> None:
    with pytest.raises(TidemillError) as caught:
        file_sources().survey(spec(server.url("/a.jsonl", host)), Interrupt())
    # The client itself refuses numbers that are almost an address.
    assert "TIDEMILL_SOURCE_HOSTS" in caught.value.message or "canonical" in caught.value.message
    assert server.asked == []


def test_a_named_host_is_read_without_proxy_or_password(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine data.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    sources = file_sources(hosts=[f"data.test:{server.port}"], look_up=addresses("127.0.0.1"))
    assert texts(sources, spec(server.url("/a.jsonl", "data.test"))) == ["x"]
    assert not [name for headers in server.headers for name in headers if name.lower() in ("authorization", "cookie")]
    with pytest.raises(PermissionDeniedError):
        pull(sources, spec(server.url("/a.jsonl", "other.test")))


def test_a_name_that_changes_its_address_gains_nothing(server: Server) -> None:
    # The first look-up returns a public address, the second loopback: the connection must not use the second.
    seen: list[str] = []
    rebinding = addresses("93.184.216.34", "127.0.0.1")

    def look_up(host: str, port: int) -> Sequence[AddressInfo]:
        found = rebinding(host, port)
        seen.append(str(found[0][4][0]))
        return found

    sources = file_sources(hosts=["93.184.216.34:*"], look_up=look_up, limits=ReadLimits(connect_s=0.3, silence_s=0.3))
    wanted = spec(server.url("/a.jsonl", "rebinding.test"))
    with pytest.raises(TidemillError):
        sources.survey(wanted, Interrupt())
    assert seen == ["93.184.216.34"], "one look-up a connection"
    with pytest.raises(PermissionDeniedError):
        sources.survey(wanted, Interrupt())
    assert server.asked == []


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{inner}/a.jsonl",
        "http://localhost:{inner}/a.jsonl",
        "//127.0.0.1:{inner}/a.jsonl",
        "http://inner.test:{inner}/a.jsonl",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "http://user:secret@data.test/a.jsonl",
        "reference::http://127.0.0.1:{inner}/a.jsonl",
    ],
)
def test_each_redirect_is_judged_again(server: Server, target: str) -> None:
    inner = Server()
    try:
        inner.answers["/a.jsonl"] = server.answers["/a.jsonl"]
        location = target.replace("{inner}", str(inner.port))
        server.answers["/moved.jsonl"] = (302, {"Location": location, "Content-Length": "0"}, b"")
        sources = file_sources(hosts=[f"data.test:{server.port}"], look_up=addresses("127.0.0.1"))
        with pytest.raises((PermissionDeniedError, InvalidArgumentError)) as caught:
            sources.survey(spec(server.url("/moved.jsonl", "data.test")), Interrupt())
        assert "secret" not in caught.value.message
        assert inner.asked == []
    finally:
        inner.stop()


def test_a_redirect_to_what_is_allowed_is_followed_a_few_times(server: Server) -> None:
    server.answers["/moved.jsonl"] = (302, {"Location": "/a.jsonl", "Content-Length": "0"}, b"")
    server.answers["/round.jsonl"] = (302, {"Location": "/round.jsonl", "Content-Length": "0"}, b"")
    sources = file_sources(hosts=["127.0.0.1:*"])
    assert texts(sources, spec(server.url("/moved.jsonl"))) == ["x"]
    with pytest.raises(FailedPreconditionError):
        sources.survey(spec(server.url("/round.jsonl")), Interrupt())
    assert server.asked.count("/round.jsonl") == 6


def test_with_url_roots_only_these_are_fetched(server: Server) -> None:
    sources = file_sources(server.url("/open"), hosts=["127.0.0.1:*"])
    server.answers["/open/a.jsonl"] = server.answers["/a.jsonl"]
    server.answers["/open/out.jsonl"] = (302, {"Location": "/a.jsonl", "Content-Length": "0"}, b"")
    assert texts(sources, spec(server.url("/open/a.jsonl"))) == ["x"]
    for path in ("/a.jsonl", "/open/out.jsonl", "/open-not/a.jsonl"):
        with pytest.raises(PermissionDeniedError):
            sources.survey(spec(server.url(path)), Interrupt())


def test_secrets_of_a_url_are_in_no_message(server: Server) -> None:
    url = server.url("/gone.jsonl") + "?X-Amz-Signature=topsecret"
    for sources in (file_sources(), file_sources(hosts=["127.0.0.1:*"])):
        with pytest.raises(TidemillError) as caught:
            sources.survey(spec(url), Interrupt())
        assert "topsecret" not in caught.value.message + str(caught.value.metadata)
        assert "gone.jsonl" in caught.value.message
    assert shown("https://me:pw@host/a?b=c") == "https://host/a?…"


def test_a_silent_source_ends_by_itself() -> None:
    sources = file_sources(hosts=["127.0.0.1:*"], limits=ReadLimits(connect_s=0.2, silence_s=0.2))
    with silent_server() as (port, _), pytest.raises(FailedPreconditionError) as caught:
        sources.survey(spec(f"http://127.0.0.1:{port}/a.jsonl"), Interrupt())
    assert caught.value.reason == "SOURCE_SILENT"


@pytest.mark.parametrize("where", ["before the answer", "within the body"])
def test_an_interrupt_ends_a_read_that_hangs(where: str) -> None:
    interrupt = Interrupt()
    ended: list[BaseException] = []
    sources = file_sources(hosts=["127.0.0.1:*"], limits=ReadLimits(silence_s=3600), compared_bytes=1 << 20)
    with silent_server() as (port, held):

        def look() -> None:
            try:
                sources.survey(spec(f"http://127.0.0.1:{port}/a.jsonl"), interrupt)
            except InterruptedReadError as error:
                ended.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        wait_until(lambda: held, "a connection")
        if where == "within the body":
            held[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        interrupt.set()
        thread.join(30)
        assert not thread.is_alive(), "it still waits"
    assert len(ended) == 1


def test_a_server_that_drips_counts_as_silent() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    try:
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                        while not stop.wait(0.02):
                            connection.sendall(b" ")
                    except OSError:
                        continue

        threading.Thread(target=drip, daemon=True).start()
        sources = file_sources(hosts=["127.0.0.1:*"], limits=ReadLimits(connect_s=0.3, silence_s=0.3))
        with pytest.raises(FailedPreconditionError) as caught:
            sources.survey(spec(f"http://127.0.0.1:{listening.getsockname()[1]}/a.jsonl"), Interrupt())
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)
    assert caught.value.reason == "SOURCE_SILENT"


def test_a_source_without_end_is_not_read_to_its_end(server: Server) -> None:
    server.answers["/large.jsonl"] = (200, {}, LINE * 300_000)
    limits = ReadLimits(file_bytes=3_000_000)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(file_sources(hosts=["127.0.0.1:*"], limits=limits), spec(server.url("/large.jsonl")))
    assert caught.value.reason == "SOURCE_TOO_LARGE"
    assert "large.jsonl: after line" in caught.value.message
    limits = ReadLimits(import_bytes=500_000)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(file_sources(hosts=["127.0.0.1:*"], limits=limits), spec(server.url("/large.jsonl")))
    assert "TIDEMILL_SOURCE_IMPORT_BYTES" in caught.value.message


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_bomb_is_defused(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"bomb.jsonl{suffix}"
    path.write_bytes(pack(LINE + b" " * (8 << 20)))
    limits = ReadLimits(unpacked_bytes=2 << 20)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(file_sources(tmp_path, limits=limits), spec(str(path)))
    assert caught.value.reason == "UNPACKS_TOO_LARGE"
    assert path.name in caught.value.message
    whole = tmp_path / f"whole.jsonl{suffix}"
    lines = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(2_000))
    # Two concatenated streams, as in joined log files.
    whole.write_bytes(pack(lines) + pack(LINE))
    assert len(pull(file_sources(tmp_path), spec(str(whole)))) == 2_001


def test_a_file_that_changes_or_goes_while_it_is_read_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps({"text": "x" * 9_980}) + "\n").encode() * 400)
    sources, wanted = file_sources(tmp_path), spec(str(path))
    survey = sources.survey(wanted, Interrupt())
    pieces = sources.read(wanted, survey, Interrupt())
    for _ in range(10):
        next(pieces)
    with path.open("ab") as stream:
        stream.write(LINE)
    with pytest.raises(FailedPreconditionError) as caught:
        list(pieces)
    assert caught.value.reason == "SOURCE_CHANGED"
    assert "a.jsonl: after line 4" in caught.value.message
    path.unlink()
    with pytest.raises(FailedPreconditionError) as caught:
        list(sources.read(wanted, survey, Interrupt()))
    assert caught.value.reason == "SOURCE_GONE"
    assert "a.jsonl" in caught.value.message


def test_the_list_of_allowed_folders_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "source-roots.json"
    assert read_roots(file) == []
    add_roots(file, ["/data", "s3://bucket/x"])
    add_roots(file, ["/data", "/more"])
    assert read_roots(file) == ["/data", "s3://bucket/x", "/more"]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    (tmp_path / "a.jsonl").write_bytes(LINE)
    roots = SourceRoots([], file)
    assert not roots.allows_folder(str(tmp_path / "a.jsonl"))
    add_roots(file, [str(tmp_path)])
    assert roots.allows_folder(str(tmp_path / "a.jsonl")), "without a restart"
    file.chmod(0o666)
    with pytest.raises(FailedPreconditionError):
        roots.allows_folder(str(tmp_path / "a.jsonl"))


def test_an_opened_file_is_judged_by_where_it_really_lies(tmp_path: Path) -> None:
    # Even if all checks of names pass, the opened descriptor is checked.
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").write_bytes(LINE)
    (tmp_path / "open" / "a").symlink_to(tmp_path / "secret")
    place = LocalFiles(
        spec(f"{tmp_path}/open/a"), "/", SourceRoots([str(tmp_path / "open")]), ReadLimits(), Interrupt()
    )
    with pytest.raises(PermissionDeniedError):
        place.heads([f"{tmp_path}/open/a"], 10)


def test_the_s3_endpoint_is_the_operators(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    seen: list[str] = []

    def look_up(host: str, port: int) -> Sequence[AddressInfo]:
        seen.append(host)
        return addresses("127.0.0.1")(host, port)

    # Without a configured endpoint, a bucket's host that resolves to loopback is refused like any other.
    with pytest.raises(PermissionDeniedError):
        file_sources("s3://bucket", look_up=look_up).survey(spec("s3://bucket/a.jsonl"), Interrupt())
    assert seen
    assert all(host.endswith(".amazonaws.com") for host in seen)
    with pytest.raises(PermissionDeniedError):
        file_sources(look_up=look_up).survey(spec("s3://bucket/a.jsonl"), Interrupt())
