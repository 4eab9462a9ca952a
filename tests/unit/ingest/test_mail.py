"""Mail: which part is the text, what is decoded, what is kept beside it, what is refused."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec, check_spec
from services.ingest.engine.file_format import ReadFile
from services.ingest.engine.formats import mail_folder
from services.ingest.engine.formats.mail_folder import MailFolder, MailPiece
from services.kit.errors import InvalidArgumentError
from tests.sources import file_sources, pull

FOLDER = MailFolder("/mail", folder_attribute="label")


def record(content: bytes, spec: MailFolder = FOLDER) -> RawRecord:
    return spec.record("mail", ReadFile("spam/1.eml", "spam", ()), MailPiece(content))


def split_messages(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for line, piece in FOLDER.split(ReadFile("spam/1.eml", "spam", chunks)):
        yield line, piece.content


def message(text: str = "Hello there.") -> EmailMessage:
    made = EmailMessage()
    made["Subject"] = "Grüße aus 北京"
    made["From"] = "Ann Müller <ann@example.org>"
    made["To"] = "bob@example.org"
    made["Date"] = "Mon, 05 Aug 2002 10:01:02 +0200"
    made["Message-ID"] = "<1@example.org>"
    made["X-Label"] = "later"
    made.set_content(text)
    return made


def test_headers_are_attributes_and_the_date_is_the_event_time() -> None:
    made = record(message().as_bytes())
    assert made.text == "Hello there.\n"
    assert made.event_time == datetime(2002, 8, 5, 8, 1, 2, tzinfo=UTC)
    assert made.attributes == {
        "path": "spam/1.eml",
        "label": "spam",
        "subject": "Grüße aus 北京",
        "from": "Ann Müller <ann@example.org>",
        "to": "bob@example.org",
        "date": "Mon, 05 Aug 2002 10:01:02 +0200",
        "message_id": "<1@example.org>",
        "content_type": "text/plain",
    }
    assert record(message().as_bytes(), MailFolder("/mail", headers=("X-Label",))).attributes == {
        "path": "spam/1.eml",
        "x_label": "later",
        "content_type": "text/plain",
    }


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit"])
@pytest.mark.parametrize("charset", ["utf-8", "gb18030", "big5", "iso-8859-1"])
def test_transfer_encodings_and_charsets_are_decoded(encoding: str, charset: str) -> None:
    text = "Prix: très élevé = 5\n" if charset == "iso-8859-1" else "今天天氣很好 = 5\n"
    made = message()
    made.set_content(text, charset=charset, cte=encoding)
    found = record(made.as_bytes())
    assert found.text == text
    assert "ingest_notes" not in found.attributes


def test_of_alternatives_plain_text_is_taken_and_attachments_are_named() -> None:
    made = message("plain")
    made.add_alternative("<p>html</p>", subtype="html")
    made.add_attachment(b"\0\1", maintype="application", subtype="pdf", filename="Größe.pdf")
    made.add_attachment("notes", filename="notes.txt")
    found = record(made.as_bytes())
    assert found.text == "plain\n"
    assert found.attributes["attachments"] == "Größe.pdf\nnotes.txt"


def test_html_stays_html_where_there_is_nothing_else() -> None:
    made = message()
    made.set_content("<p>only</p>", subtype="html")
    found = record(made.as_bytes())
    assert (found.text, found.attributes["content_type"]) == ("<p>only</p>\n", "text/html")


def test_a_forwarded_message_and_a_footer_are_part_of_the_text() -> None:
    made = message("See below.")
    made.add_attachment(message("The forwarded one."))
    footer = EmailMessage()
    footer.set_content("List footer")
    made.attach(footer)
    assert record(made.as_bytes()).text == "See below.\n\nThe forwarded one.\n\nList footer"


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        (b"=?utf-8?q?caf=C3=A9?= =?utf-8?q?_noir?=", "café noir"),
        (b"=?GB2312?B?1tDOxA==?= (fwd)", "中文 (fwd)"),
        (b"=?x-unknown?q?caf=E9?=", "café"),
        ("中文".encode(), "中文"),
        (b"caf\xe9", "café"),
        (b"folded\r\n  line", "folded line"),
        (b"=?utf-8?b?%%%?=", "=?utf-8?b?%%%?="),
    ],
)
def test_encoded_words_and_raw_bytes_of_headers(raw: bytes, decoded: str) -> None:
    assert record(b"Subject: " + raw + b"\r\n\r\ntext").attributes["subject"] == decoded


@pytest.mark.parametrize("encoding", [b"8bit", b"x-uuencode", b"base64"])
def test_a_charset_that_cannot_replace_what_it_does_not_know_is_no_error(encoding: bytes) -> None:
    head = b"Subject: x\nContent-Type: text/plain; charset=idna\nContent-Transfer-Encoding: " + encoding
    text = record(head + b"\n\nbegin 644 a\ncaf\xe9 \xe0 la carte").text
    assert text
    # As base64 it is other bytes.
    assert ("carte" in text) is (encoding != b"base64")


def test_a_wrong_charset_is_noted_and_the_text_is_kept() -> None:
    found = record(b"Subject: x\nContent-Type: text/plain; charset=us-ascii\n\ncaf\xe9 \xe0 la carte")
    assert found.text == "café à la carte"
    assert "read as cp1252" in found.attributes["ingest_notes"]


def test_an_invalid_date_is_noted() -> None:
    found = record(b"Date: yesterday\n\ntext")
    assert found.event_time is None
    assert found.attributes["date"] == "yesterday"
    assert "date:" in found.attributes["ingest_notes"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "NOT_MAIL"),
        (b"just some words\n\nand more", "NOT_MAIL"),
        (b"\x89PNG\0\0", "NOT_MAIL"),
        (b"Subject: x\n\n", "NO_MAIL_TEXT"),
        (b"Subject: x\nContent-Type: image/png\n\nabc", "NO_MAIL_TEXT"),
        (b"Subject: x\n\n" + b"x" * (600 * 1024), "TEXT_TOO_LONG"),
    ],
)
def test_what_gives_no_record_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(RecordRefusedError) as caught:
        record(content)
    assert caught.value.reason == reason


def test_nesting_without_end_is_refused() -> None:
    content = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(200))
    with pytest.raises(RecordRefusedError) as caught:
        record(content + b"\n\ntext")
    assert caught.value.reason == "NESTED_TOO_DEEP"
    assert record(message().as_bytes()).text, "the next one is read"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 10_001, "TOO_MANY_PARTS"),
        (b"Content-Type: message/rfc822\n\n" * 100_000 + b"text", "NESTED_TOO_DEEP"),
        (b"X-Header: a\n" * 10_000 + b"\ntext", "TOO_MANY_HEADERS"),
        (b"Subject: a\n\n" + b"\n" * 1_000_001 + b"text", "MESSAGE_TOO_LONG"),
    ],
)
def test_what_would_take_much_memory_or_time_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(RecordRefusedError) as caught:
        record(content)
    assert caught.value.reason == reason


@pytest.mark.parametrize("parameters", [b";" * 2_000_000, b'; name="' + b";" * 2_000_000, b"; a=b" * 1_000_000])
def test_a_header_about_a_part_is_cut_before_its_parameters_are_read(parameters: bytes) -> None:
    found = record(b"Content-Type: text/plain" + parameters + b"\n\ntext")
    assert found.text == "text"
    assert "content_type: more than" in found.attributes["ingest_notes"]


def test_a_long_header_with_encoded_words_is_cut() -> None:
    found = record(b"Subject: =?utf-8?q?caf=C3=A9?= " + b"=?a?q?" * 200_000 + b"\n\ntext")
    assert found.attributes["subject"].startswith("caf\u00e9")
    assert "subject: more than" in found.attributes["ingest_notes"]


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_bytes_of_any_kind_behind_a_header_are_a_record_or_refused(content: bytes) -> None:
    for head in (b"", b"Content-Type: multipart/mixed; boundary=b\n\n--b\n", b"Content-Transfer-Encoding: base64\n\n"):
        for _, part in split_messages([head + content]):
            with suppress(RecordRefusedError):
                assert record(part).text


PARTS = (
    b"--=_part one\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n5L2g5aW9\n"
    b"--=_part one\nContent-Type: application/pdf; name=a.pdf\nContent-Transfer-Encoding: base64\n\n" + b"QUJD" * 30
)


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: s\n\n\n" + PARTS,
        b"Subject: s\n\nThis is a multi-part message in MIME format.\n\n" + PARTS,
        b"Subject: s\nContent-Type: multipart/mixed; boundary=other\n\nany preamble\n\n"
        + PARTS
        + b"\n--=_part one--\n",
        b"Subject: s\nContent-Type: multipart/mixed\n\n" + PARTS,
        b"Subject: s\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=out\n\n--out\n"
        b"Content-Type: multipart/related; boundary=wrong\n\n" + PARTS + b"\n--out--\n",
    ],
    ids=["undeclared", "preamble", "another", "missing", "nested"],
)
def test_parts_are_found_by_their_boundary_if_it_is_not_the_declared_one(content: bytes) -> None:
    found = record(content)
    assert found.text.strip() == "\u4f60\u597d"
    assert found.attributes["attachments"] == "a.pdf"
    assert "boundary" in found.attributes["ingest_notes"]


def test_a_message_that_speaks_about_mime_stays_as_it_is() -> None:
    text = "The parser of a\n\n" + PARTS.decode()
    found = record(b"Subject: s\n\n" + text.encode())
    assert found.text == text
    assert "ingest_notes" not in found.attributes


def test_multipart_without_any_part_is_read_as_text() -> None:
    found = record(b"Subject: s\nContent-Type: multipart/mixed; boundary=b\n\nJust words.")
    assert found.text == "Just words."
    assert "without parts" in found.attributes["ingest_notes"]


LATE_HEADERS = (
    b"To: a@b.org\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\nDate: x\n\n<p>5 \xe2\x82\xac</p>"
)


@pytest.mark.parametrize(
    "between",
    [b"\n", b"\n =?utf-8?q?rest_of_the_subject?=\n\n", b"\n\nDATA\n", b'\n" <broken@b.org>\n'],
    ids=["empty line", "encoded word", "SMTP", "broken line"],
)
def test_headers_behind_an_empty_line_are_read_as_headers(between: bytes) -> None:
    content = b"Subject: first\nReceived: by a.org\nDate: Mon, 05 Aug 2002 10:01:02 +0200\n" + between + LATE_HEADERS
    found = record(content)
    assert found.text == "<p>5 \u20ac</p>"
    assert (found.attributes["subject"], found.attributes["to"]) == ("first", "a@b.org")
    assert found.attributes["content_type"] == "text/html"
    assert found.event_time is not None, "of two the header's own counts"
    assert "empty line" in found.attributes["ingest_notes"]


@pytest.mark.parametrize(
    "text",
    [
        "From: Ann\nDate: Monday\nTo: Bob\nSubject: lunch\n\nShall we?",
        "Name: Ann\nAge: 40\nContent-Type: human\nnot a header\n\nA form.",
        "URL: http://a.org/\nDate: today\n\nNews.",
        "Content-Type: text/html says what it is.\n\nSo it does.",
        "DATA\nwas lost, they say.\n",
    ],
)
def test_a_letter_that_begins_like_a_header_stays_as_it_is(text: str) -> None:
    assert record(b"Subject: s\n\n" + text.encode()).text == text


def test_text_for_programs_is_not_read() -> None:
    made = message("See my card.")
    made.make_mixed()
    for subtype in ("x-vcard", "calendar", "rfc822-headers"):
        part = EmailMessage()
        part.set_content("BEGIN:VCARD", subtype=subtype)
        made.attach(part)
    found = record(made.as_bytes())
    assert found.text == "See my card.\n"
    assert found.attributes["attachments"] == "text/x-vcard\ntext/calendar\ntext/rfc822-headers"


def test_the_path_gives_attributes() -> None:
    spec = MailFolder("/mail", path_pattern=r"(?P<label>ham|spam)-(?P<part>\d)/")
    piece = MailPiece(message().as_bytes())
    found = spec.record("mail", ReadFile("set/easy-ham-2/1.eml", "easy-ham-2", ()), piece)
    assert (found.attributes["label"], found.attributes["part"]) == ("ham", "2")
    with pytest.raises(RecordRefusedError) as caught:
        spec.record("mail", ReadFile("set/other/1.eml", "other", ()), piece)
    assert caught.value.reason == "NO_PATH_MATCH"


def test_a_header_may_identify_a_message() -> None:
    spec = MailFolder("/mail", id_header="Message-ID")
    first, second = message("One."), message("Another one.")
    assert record(first.as_bytes(), spec).record_id == record(second.as_bytes(), spec).record_id
    assert record(first.as_bytes()).record_id != record(second.as_bytes()).record_id
    del first["Message-ID"], second["Message-ID"]
    assert record(first.as_bytes(), spec).record_id != record(second.as_bytes(), spec).record_id


def test_a_message_that_is_too_long_is_refused_and_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_folder, "MAX_MESSAGE_BYTES", 1000)
    start = b"From a@b.org Mon Aug  5 10:01:02 2002\n"
    content = start + b"Subject: 1\n\n" + b"long line\n" * 500 + b"\n" + start + b"Subject: 2\n\nshort"
    (_, long), (_, short) = split_messages([content])
    with pytest.raises(RecordRefusedError) as caught:
        record(long)
    assert caught.value.reason == "MESSAGE_TOO_LONG"
    assert record(short).text == "short"


MAILBOX = (
    b"From a@b.org Mon Aug  5 10:01:02 2002\r\nSubject: 1\r\n\r\nFirst.\r\n>From here on.\r\n"
    b"From me to you: no new message.\r\n\r\n"
    b"From MAILER-DAEMON Tue Aug 26 00:00:00 2002\nSubject: 2\n\nSecond.\n"
)


@given(st.lists(st.integers(0, len(MAILBOX)), max_size=6))
@example([])
def test_a_mailbox_has_a_message_behind_each_beginning(cuts: list[int]) -> None:
    places = sorted({0, len(MAILBOX), *cuts})
    chunks = [MAILBOX[start:end] for start, end in pairwise(places)]
    found = [(number, record(part).text) for number, part in split_messages(chunks)]
    assert found == [(2, "First.\nFrom here on.\nFrom me to you: no new message.\n\n"), (9, "Second.\n")]


PIECES = [
    b"Subject: ",
    b"=?utf-8?b?",
    b"Content-Type: multipart/mixed; boundary=b\n",
    b"Content-Type: text/plain; charset=",
    b"Content-Transfer-Encoding: ",
    b"Content-Disposition: attachment; filename*=x''%ff\n",
    b"Date: 99 Feb 0000 99:99:99 +9999\n",
    b"From a Mon Aug 5 1:01:02 2002\n",
    *(b"\n\n", b"--b\n", b"--b--\n", b"utf-16", b"idna", b"base64", b"x-uuencode", b"begin 644 a\n", b"\n"),
    *(b"\xff", b"\0", b"Date: ", b": ", b"?=", b"a"),
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join))
def test_whatever_comes_is_a_record_or_refused(content: bytes) -> None:
    for _, part in split_messages([content]):
        with suppress(RecordRefusedError):
            assert record(part).text


def test_a_folder_of_messages_and_mailboxes(tmp_path: Path) -> None:
    for name, content in {
        "ham/1.eml": message("One.").as_bytes(),
        "ham/2": b"no mail at all",
        "spam/box": MAILBOX,
        "spam/old.mbox.gz": gzip.compress(MAILBOX.replace(b"First", b"Older")),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    sources = file_sources(tmp_path)
    spec = SourceSpec("mail", MailFolder(str(tmp_path), folder_attribute="label"))
    pieces = pull(sources, spec)
    records = [piece for piece in pieces if isinstance(piece, RawRecord)]
    assert [(r.attributes["label"], r.attributes["path"], r.text.split(".")[0]) for r in records] == [
        ("ham", "ham/1.eml", "One"),
        ("spam", "spam/box", "First"),
        ("spam", "spam/box", "Second"),
        ("spam", "spam/old.mbox.gz", "Older"),
        ("spam", "spam/old.mbox.gz", "Second"),
    ]
    (refusal,) = [piece for piece in pieces if isinstance(piece, Refusal)]
    assert (refusal.location, refusal.reason) == (f"{tmp_path.as_uri()}/ham/2:1", "NOT_MAIL")
    (tmp_path / "spam" / "box").write_bytes(MAILBOX.replace(b"Second.", b""))
    (empty,) = [piece for piece in pull(sources, spec) if isinstance(piece, Refusal) and "box" in piece.location]
    assert (empty.location, empty.message) == (
        f"{tmp_path.as_uri()}/spam/box:9",
        "Message 2: The message has no text.",
    )
    (tmp_path / "spam" / "box").write_bytes(MAILBOX)
    assert pull(sources, spec) == pieces
    only = SourceSpec("mail", MailFolder(str(tmp_path), "**/*.eml"))
    assert len(pull(sources, only)) == 1


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (MailFolder("mail"), "spec.mail_folder.uri"),
        (MailFolder("/x", pattern="../*"), "spec.mail_folder.pattern"),
        (MailFolder("/x", folder_attribute="Label"), "spec.mail_folder.folder_attribute"),
        (MailFolder("/x", headers=("Subject", "not a header")), "spec.mail_folder.headers[1]"),
        (MailFolder("/x", id_header="not a header"), "spec.mail_folder.id_header"),
        (MailFolder("/x", path_pattern="(?P<label>ham"), "spec.mail_folder.path_pattern"),
        (MailFolder("/x", path_pattern="ham|spam"), "spec.mail_folder.path_pattern"),
        (MailFolder("/x", path_pattern="(?P<path>ham)"), "spec.mail_folder.path_pattern"),
        (MailFolder("/x", folder_attribute="label", path_pattern="(?P<label>ham)"), "spec.mail_folder.path_pattern"),
    ],
)
def test_a_wrong_field_is_named(kind: MailFolder, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(SourceSpec("s", kind))
    assert [violation.field for violation in caught.value.violations] == [field]
