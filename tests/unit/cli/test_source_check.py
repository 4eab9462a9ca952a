"""`tidemill run --check`: what is wrong with a file's sources, at its lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.connection import connect
from gateway.cli.pipeline_file import load_pipeline
from gateway.cli.source_check import check_recipe, check_sources
from services.kit.errors import InvalidArgumentError, UnavailableError

ROOT = Path(__file__).parents[3]


def pipeline(folder: Path, source: str) -> Path:
    text = (ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8")
    old = '    json_lines: {uri: "${TIDEMILL_DATA}/reviews/reviews.jsonl", attribute_fields: [label]}'
    assert old in text
    path = folder / "a.yaml"
    path.write_text(text.replace(old, f"    {source}"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "source",
    [
        'json_lines: {uri: "here.jsonl"}',
        'json_lines: {uri: "*.jsonl"}',
        'text_folder: {uri: "."}',
        'json_lines: {uri: "https://example.org/a.jsonl"}',
        'text_folder: {uri: "s3://bucket/x"}',
        'json_lines: {uri: "${TIDEMILL_DATA}/reviews/reviews.jsonl"}',
    ],
)
def test_what_is_there_or_will_be_fetched_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path / "empty-home"))
    (tmp_path / "here.jsonl").write_text("{}\n")
    check_sources(load_pipeline(pipeline(tmp_path, source)))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('json_lines: {uri: "gone.jsonl"}', "is not a file"),
        ('json_lines: {uri: "*.jsonl"}', "no file matches"),
        ('text_folder: {uri: "gone"}', "does not exist"),
        ('json_lines: {uri: "simplecache::http://127.0.0.1/a"}', "::"),
        ('json_lines: {uri: "ftp://host/a"}', "ftp"),
    ],
)
def test_what_is_not_there_is_named_with_its_line_and_field(tmp_path: Path, source: str, words: str) -> None:
    path = pipeline(tmp_path, source)
    with pytest.raises(InvalidArgumentError) as caught:
        check_sources(load_pipeline(path))
    assert words in caught.value.message
    kind = source.partition(":")[0]
    line = 1 + next(n for n, text in enumerate(path.read_text(encoding="utf-8").splitlines()) if source in text)
    assert f"{path}:{line}:" in caught.value.message
    assert f"sources[0].{kind}.uri" in caught.value.message


def test_without_a_mesh_the_operators_are_not_checked(tmp_path: Path) -> None:
    file = load_pipeline(pipeline(tmp_path, 'text_folder: {uri: "."}'))
    with pytest.raises(UnavailableError), connect("127.0.0.1:1") as connection:
        check_recipe(file, connection)
