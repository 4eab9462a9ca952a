"""`tidemill run --check`: what is wrong with a file's sources, at its lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.connection import connect
from gateway.cli.main import create_cli
from gateway.cli.pipeline_file import load_pipeline
from gateway.cli.source_check import check_base_model, check_recipe, check_sources
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.kit.source_roots import FILE_NAME, read_roots

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


def with_base_model(folder: Path, name: str) -> Path:
    text = (ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8")
    path = folder / "a.yaml"
    path.write_text(text.replace("bge-small-zh-v1.5", name), encoding="utf-8")
    return path


def test_a_folder_of_a_base_model_must_be_there_and_have_safe_weights(tmp_path: Path) -> None:
    model = tmp_path / "model"

    def wrong(name: str) -> str:
        path = with_base_model(tmp_path, name)
        with pytest.raises(InvalidArgumentError) as caught:
            check_base_model(load_pipeline(path))
        line = 1 + next(n for n, text in enumerate(path.read_text("utf-8").splitlines()) if "base_model" in text)
        assert f"{path}:{line}:" in caught.value.message
        assert "training.base_model" in caught.value.message
        return caught.value.message

    assert f"the folder {model} does not exist" in wrong(str(model))
    assert "give the folder's absolute path" in wrong("./model")
    model.mkdir()
    assert "has no config.json" in wrong(str(model))
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").touch()
    assert "has no *.safetensors files" in wrong(str(model))
    (model / "model.safetensors").touch()
    for right in (str(model), "bge-small-zh-v1.5"):
        check_base_model(load_pipeline(with_base_model(tmp_path, right)))


@pytest.mark.parametrize("command", [("run",), ("dataset", "build"), ("triggers", "put"), ("sources", "put")])
def test_every_command_whose_work_reads_files_fetches_examples_and_allows_the_folders(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []
    monkeypatch.setattr("gateway.cli.stack_commands.fetch", lambda _, names: fetched.append(list(names)))
    monkeypatch.setattr("gateway.cli.file_inputs.as_owner", lambda: None)
    monkeypatch.setattr("gateway.cli.file_inputs.show_to_mesh", lambda _: None)
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TIDEMILL_STATE", str(tmp_path / "state"))
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir()
    elsewhere.mkdir()
    text = (ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8")
    path = own / "a.yaml"
    path.write_text(text + "triggers: {schedule: 0 3 * * MON, time_zone: UTC}\n", encoding="utf-8")
    CliRunner().invoke(create_cli(), [*command, str(path), "--allow", str(elsewhere)])
    assert fetched == [["bge-small-zh", "reviews"]]
    assert {str(own), str(elsewhere)} <= set(read_roots(tmp_path / "state" / FILE_NAME))


def test_without_a_mesh_the_operators_are_not_checked(tmp_path: Path) -> None:
    file = load_pipeline(pipeline(tmp_path, 'text_folder: {uri: "."}'))
    with pytest.raises(UnavailableError), connect("127.0.0.1:1") as connection:
        check_recipe(file, connection)
