"""Reads `pipelines/*.yaml`: the JSON form of tidemill.pipeline.v1.PipelineSpec, with short operators and variables."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from tidemill.pipeline.v1 import cycle_pb2

from services.kit.config import home_dir
from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate

_VARIABLE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)(?::-([^}]*))?\}")


def load_pipeline(path: Path) -> cycle_pb2.PipelineSpec:
    """The loop that a file describes.

    Operators may be written `- exact_dedup` or `- length_filter: {min_chars: 200}`; `${NAME}` and `${NAME:-default}`
    are replaced from the environment (`TIDEMILL_DATA` defaults to the fetched data).

    Raises:
        InvalidArgumentError: names the file, and the line or field that is wrong.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path}: cannot be read: {error}", reason="PIPELINE_FILE") from error
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"{path}: no YAML: {error}", reason="PIPELINE_FILE") from error
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path}: a mapping with name, sources, … is expected.", reason="PIPELINE_FILE")
    value = _expand(value, path)
    dataset = value.get("dataset")
    if isinstance(dataset, dict) and isinstance(dataset.get("operators"), list):
        dataset["operators"] = [_operator(item, path, n) for n, item in enumerate(dataset["operators"])]
    spec = cycle_pb2.PipelineSpec()
    try:
        json_format.ParseDict(value, spec)
        validate(spec)
    except json_format.ParseError as error:
        raise InvalidArgumentError(f"{path}: {error}", reason="PIPELINE_FILE") from error
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"{path}: {error.message}", reason="PIPELINE_FILE", violations=error.violations
        ) from error
    return spec


def _operator(item: Any, path: Path, number: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"name": item, "params": {}}
    if isinstance(item, dict) and len(item) == 1:
        ((name, params),) = item.items()
        if params is None or isinstance(params, dict):
            return {"name": name, "params": params or {}}
    raise InvalidArgumentError(
        f"{path}: dataset.operators[{number}]: write `- name` or `- name: {{parameter: value}}`.",
        reason="PIPELINE_FILE",
    )


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found: str | None = os.environ.get(name) or default
        if found is None and name == "TIDEMILL_DATA":
            found = str(home_dir() / "data")
        if found is None:
            raise InvalidArgumentError(f"{path}: the variable {name} is not set.", reason="PIPELINE_FILE")
        return found

    return _VARIABLE.sub(replace, value)
