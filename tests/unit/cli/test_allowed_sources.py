"""What `tidemill run` lets imports read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tidemill.pipeline.v1.cycle_pb2 import PipelineSpec

from gateway.cli.allowed_sources import allow, unread_folder, wanted_roots
from gateway.cli.pipeline_file import PipelineFile
from services.kit.errors import InvalidArgumentError
from services.kit.source_roots import FILE_NAME, read_roots


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mesh's state, beside a home folder of the test's own."""
    monkeypatch.setenv("TIDEMILL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("state", "home/loops", "data"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "state" / FILE_NAME


def file(path: Path) -> PipelineFile:
    return PipelineFile(path, PipelineSpec(), {})


def let(pipeline: PipelineFile, more: Sequence[str] = ()) -> None:
    allow(wanted_roots(pipeline, more), pipeline)


def test_the_folder_of_the_file_and_what_is_named(state: Path, tmp_path: Path) -> None:
    loops = tmp_path / "home" / "loops"
    (tmp_path / "link").symlink_to(loops)
    let(file(tmp_path / "link" / "a.yaml"))
    assert read_roots(state) == [str(loops)]
    let(file(loops / "a.yaml"), [str(tmp_path / "data"), "s3://bucket/x/"])
    assert read_roots(state) == [str(loops), str(tmp_path / "data"), "s3://bucket/x"]


@pytest.mark.parametrize("folder", ["home", ".", "/"])
def test_a_folder_with_keys_in_it_is_never_allowed(state: Path, tmp_path: Path, folder: str) -> None:
    wide = (tmp_path / folder).resolve()
    let(file(wide / "a.yaml"))
    assert read_roots(state) == []
    with pytest.raises(InvalidArgumentError, match="keys"):
        let(file(wide / "a.yaml"), [str(wide)])


def test_a_folder_that_has_the_sources_and_is_too_wide_is_named(state: Path, tmp_path: Path) -> None:
    def unread(folder: Path, uri: str) -> str:
        pipeline = PipelineFile(folder / "a.yaml", PipelineSpec(), {})
        pipeline.spec.sources.add(source="s").json_lines.uri = uri
        return unread_folder(pipeline, wanted_roots(pipeline))

    wide, own = tmp_path, tmp_path / "home" / "loops"
    assert unread(wide, f"{wide}/a.jsonl") == str(wide)
    # Elsewhere, and in a folder that may be read.
    assert unread(wide, "/srv/a.jsonl") == unread(wide, "https://host/a.jsonl") == ""
    assert unread(own, f"{own}/a.jsonl") == ""


def test_what_is_not_there_is_refused_by_name(state: Path, tmp_path: Path) -> None:
    for wrong in (str(tmp_path / "nowhere"), "https://host/x", "s3://"):
        with pytest.raises(InvalidArgumentError) as caught:
            let(file(tmp_path / "home" / "loops" / "a.yaml"), [wrong])
        assert wrong in caught.value.message
