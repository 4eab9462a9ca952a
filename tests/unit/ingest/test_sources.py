"""Sources: files of this machine, and of an S3 bucket."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs

from services.ingest.adapters.source_files.s3 import s3_endpoint
from services.ingest.adapters.sources import FileSources
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import Survey
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.engine.formats.text_folder import TextFolder
from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from tests import sources
from tests.s3 import new_bucket, serving_s3
from tests.sources import file_sources


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3; its URL."""
    with serving_s3() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as a URL."""
    if request.param == "local":
        return tmp_path.as_uri()
    return f"{new_bucket(request.getfixturevalue('s3'), monkeypatch)}/sources"


def put(root: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as stream:
            stream.write(content)


def reader(compared_bytes: int = 1 << 20) -> FileSources:
    """Reads anything that these tests put somewhere."""
    buckets = (
        {name: f"s3://{name}" for name in s3fs.S3FileSystem().ls("")} if os.environ.get("AWS_ENDPOINT_URL") else {}
    )
    return file_sources(
        tempfile.gettempdir(), *buckets.values(), compared_bytes=compared_bytes, s3_endpoint=s3_endpoint("")
    )


def survey(spec: SourceSpec, compared_bytes: int = 1 << 20) -> Survey:
    return reader(compared_bytes).survey(spec, Interrupt())


def pull(spec: SourceSpec) -> list[RawRecord | Refusal]:
    return sources.pull(reader(), spec)


def texts(spec: SourceSpec) -> list[str]:
    return sources.texts(reader(), spec)


def test_a_folder_is_read_in_order_with_its_names(root: str) -> None:
    put(root, {"tech/b.txt": b"2", "tech/a.txt": b"1", "art/deep/z.txt": b"0", "top.txt": b"3", "art/x.md": b"no"})
    spec = SourceSpec("s", TextFolder(root, folder_attribute="topic"))
    found = [piece for piece in pull(spec) if isinstance(piece, RawRecord)]
    assert [(r.text, r.attributes["path"], r.attributes["topic"]) for r in found][:3] == [
        ("0", "art/deep/z.txt", "deep"),
        ("1", "tech/a.txt", "tech"),
        ("2", "tech/b.txt", "tech"),
    ]
    assert found[3].attributes["path"] == "top.txt"
    assert texts(SourceSpec("s", TextFolder(root, pattern="tech/*.txt"))) == ["1", "2"]
    assert texts(SourceSpec("s", TextFolder(f"{root}/", pattern="**/*.md"))) == ["no"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path.as_uri(), {"a[1]*/x.txt": b"here"})
    assert texts(SourceSpec("s", TextFolder(f"{tmp_path}/a[1]*"))) == ["here"]
    put(tmp_path.as_uri(), {"a[1].jsonl": b'{"text": "x"}'})
    assert texts(SourceSpec("s", JsonLines(f"{tmp_path}/a[1].jsonl"))) == ["x"]


def test_lines_of_several_files_come_in_order_and_refusals_name_file_and_line(root: str) -> None:
    put(root, {"2.jsonl": b'{"text": "c"}\n', "1.jsonl": b'{"text": "a"}\n\n{"text": }\n{"text": "b"}', "no.txt": b"x"})
    pieces = pull(SourceSpec("s", JsonLines(f"{root}/*.jsonl")))
    assert [p.text if isinstance(p, RawRecord) else p.reason for p in pieces] == ["a", "INVALID_JSON", "b", "c"]
    refusal = pieces[1]
    assert isinstance(refusal, Refusal)
    assert refusal.location.endswith("1.jsonl:3")
    assert refusal.content == b'{"text": }'
    assert len(pull(SourceSpec("s", JsonLines(f"{root}/2.jsonl")))) == 1


def test_records_that_could_not_be_kept_whole_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path.as_uri(), {"a.jsonl": b'{"text": "x", "n": NaN}\n{"text": "y"}\n{"text": "z", "n": NaN}\n'})
    assert len(pull(SourceSpec("s", JsonLines(f"{tmp_path}/a.jsonl")))) == 3
    (message,) = [record.getMessage() for record in caplog.records if "ingest_notes" in record.getMessage()]
    assert message.startswith("2 records of ")


def test_a_file_that_is_not_in_the_encoding_is_refused_by_name(root: str) -> None:
    put(root, {"a.txt": b"fine", "b.txt": b"caf\xe9"})
    fine, refused = pull(SourceSpec("s", TextFolder(root)))
    assert isinstance(fine, RawRecord)
    assert isinstance(refused, Refusal)
    assert refused.location.endswith("/b.txt")
    assert (refused.reason, refused.content) == ("NOT_DECODABLE", b"caf\xe9")


def test_links_are_followed_once_and_one_that_leads_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path.as_uri(), {"far/deep/x.txt": b"x", "far/y.txt": b"y", "far/z.jsonl": b'{"text": "z"}'})
    here = tmp_path / "here"
    here.mkdir()
    (here / "round").symlink_to(here)
    (here / "b").symlink_to(tmp_path / "far" / "deep")
    (here / "a.txt").symlink_to(tmp_path / "far" / "y.txt")
    (here / "gone.txt").symlink_to(tmp_path / "nowhere")
    (here / "c.jsonl").symlink_to(tmp_path / "far" / "z.jsonl")
    spec = SourceSpec("s", TextFolder(str(here)))
    found = pull(spec)
    assert [(p.attributes["path"], p.text) for p in found if isinstance(p, RawRecord)] == [
        ("a.txt", "y"),
        ("b/x.txt", "x"),
    ]
    (refused,) = [piece for piece in found if isinstance(piece, Refusal)]
    assert refused.reason == "UNREADABLE_FILE"
    assert refused.location.endswith("/here/gone.txt")
    assert texts(SourceSpec("s", JsonLines(f"{here}/*.jsonl"))) == ["z"]
    before = survey(spec).digest
    (tmp_path / "nowhere").write_text("here now")
    assert survey(spec).digest != before


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("a")
    assert texts(SourceSpec("s", TextFolder(str(tmp_path)))) == ["a"]
    with pytest.raises(InvalidArgumentError) as caught:
        pull(SourceSpec("s", JsonLines(f"{tmp_path}/pipe.txt")))
    assert "not a regular file" in caught.value.message


def test_a_folder_that_cannot_be_looked_into_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path.as_uri(), {"a.txt": b"a", "closed/b.txt": b"b"})
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(FailedPreconditionError) as caught:
        pull(SourceSpec("s", TextFolder(str(tmp_path))))
    assert "closed" in caught.value.message


def test_packed_lines_are_unpacked_and_of_unknown_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n{"text": "y"}\n'))
    spec = SourceSpec("s", JsonLines(f"{tmp_path}/a.jsonl.gz"))
    assert texts(spec) == ["x", "y"]
    assert survey(spec).pieces == 0
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])
    with pytest.raises(FailedPreconditionError) as caught:
        pull(spec)
    assert caught.value.reason == "PACKED_FILE_DAMAGED"
    assert "a.jsonl.gz: after line" in caught.value.message


def test_the_digest_follows_names_and_contents(root: str) -> None:
    spec = SourceSpec("s", TextFolder(root))
    put(root, {"a.txt": b"1", "b.txt": b"2", "c.md": b"3"})
    first = survey(spec)
    assert (first.pieces, len(first.digest)) == (2, 64)
    assert survey(spec).digest == first.digest
    put(root, {"c.md": b"4"})
    assert survey(spec).digest == first.digest
    put(root, {"b.txt": b"3"})
    second = survey(spec).digest
    put(root, {"b.txt": b"2", "d.txt": b""})
    third = survey(spec).digest
    assert len({first.digest, second, third}) == 3


def test_what_is_larger_than_the_limit_has_no_digest(tmp_path: Path) -> None:
    root = tmp_path.as_uri()
    put(root, {"a.jsonl": json.dumps({"text": "x" * 100}).encode() + b"\n"})
    spec = SourceSpec("s", JsonLines(f"{root}/a.jsonl"))
    assert survey(spec, 50).digest == ""
    found = survey(spec, 500)
    assert found.digest
    assert found.pieces == 1


@pytest.mark.parametrize(
    ("make", "field", "words"),
    [
        (lambda root: TextFolder(f"{root}/nowhere"), "spec.text_folder.uri", "does not exist"),
        (lambda root: TextFolder(f"{root}/a.txt"), "spec.text_folder.uri", "is a file"),
        (lambda root: TextFolder(root, pattern="*.html"), "spec.text_folder.pattern", "matches '*.html'"),
        (lambda root: JsonLines(f"{root}/nowhere.jsonl"), "spec.json_lines.uri", "does not exist"),
        (lambda root: JsonLines(f"{root}/*.jsonl"), "spec.json_lines.uri", "No file matches"),
        (lambda root: JsonLines(root), "spec.json_lines.uri", "is a folder"),
        (lambda root: JsonLines("nonsense://x"), "spec.json_lines.uri", "nonsense"),
    ],
)
def test_a_source_that_is_not_there_is_named(root: str, make: object, field: str, words: str) -> None:
    put(root, {"a.txt": b"1"})
    with pytest.raises(InvalidArgumentError) as caught:
        survey(SourceSpec("s", make(root)), 0)  # type: ignore[operator]  # a lambda of the table
    assert [violation.field for violation in caught.value.violations] == [field]
    assert words in caught.value.message
