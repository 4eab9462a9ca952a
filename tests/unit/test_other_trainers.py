"""docs/other-trainers.md: what it says of Tidemill's fields is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tidemill.pipeline.v1 import cycle_pb2

from gateway.cli.pipeline_file import load_pipeline

_TEXT = (Path(__file__).parents[2] / "docs" / "other-trainers.md").read_text(encoding="utf-8")


def _ours() -> list[str]:
    """The fields in the last column."""
    rows = [line.strip("|").split("|") for line in _TEXT.splitlines() if line.startswith("| `")]
    assert rows
    assert all(len(row) == 3 for row in rows)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[2])]


def test_every_field_in_the_table_is_one_of_a_pipeline_file() -> None:
    for name in _ours():
        descriptor: Any = cycle_pb2.PipelineSpec.DESCRIPTOR
        for part in name.split("."):
            assert descriptor is not None, name
            assert part in descriptor.fields_by_name, f"{name}: {part} is not a field of {descriptor.full_name}"
            descriptor = descriptor.fields_by_name[part].message_type


def test_every_option_of_how_weights_are_moved_is_in_the_table() -> None:
    optimization: Any = cycle_pb2.PipelineSpec().training.optimization.DESCRIPTOR
    wanted = {f"training.optimization.{name}" for name in optimization.fields_by_name}
    assert wanted <= set(_ours())


def test_the_rewritten_recipe_is_a_pipeline_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", _TEXT, re.DOTALL)[-1], encoding="utf-8")
    spec = load_pipeline(file).spec
    assert (spec.training.lora.r, spec.training.optimization.gradient_accumulation) == (8, 8)
