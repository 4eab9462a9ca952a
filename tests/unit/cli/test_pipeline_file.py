"""Pipeline files: every one that is shipped loads; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.pipeline_file import load_pipeline
from services.kit.errors import InvalidArgumentError

PIPELINES = sorted((Path(__file__).parents[3] / "pipelines").rglob("*.yaml"))


def test_there_are_pipelines() -> None:
    assert PIPELINES


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_pipeline_loads(path: Path) -> None:
    spec = load_pipeline(path)
    assert spec.name == path.stem
    assert all(operator.name for operator in spec.dataset.operators)


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(PIPELINES[0].read_text().replace("learning_rate: 0.001", "learning_rate: 7"))
    with pytest.raises(InvalidArgumentError, match="learning_rate") as caught:
        load_pipeline(path)
    assert str(path) in caught.value.message


def test_an_unset_variable_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: ${TIDEMILL_NO_SUCH_VARIABLE}\n")
    with pytest.raises(InvalidArgumentError, match="TIDEMILL_NO_SUCH_VARIABLE"):
        load_pipeline(path)
