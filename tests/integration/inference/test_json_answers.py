"""Answers that follow a JSON schema, by the real engine: a model with random weights writes nothing but valid JSON."""

from __future__ import annotations

import json
from datetime import datetime, time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from services.kit.engine import import_openvino, open_language_model
from services.kit.json_grammar import grammar_of
from services.training.adapters.language_builds import LanguageBuilds
from tests.models import make_language_model

pytestmark = pytest.mark.real

_LIMIT = 200
_FORMATS = jsonschema.FormatChecker(formats=("date", "uuid", "ipv4", "email"))
for _kind in (time, datetime):
    _FORMATS.checks("date-time" if _kind is datetime else "time", raises=ValueError)(_kind.fromisoformat)
_SCHEMAS: dict[str, Any] = {
    "ticket": {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "urgent": {"type": "boolean"},
            "kind": {"enum": ["bug", "Wunsch ü", 7, None]},
            "score": {"type": "integer", "minimum": -12, "maximum": 1234},
            "when": {"type": "string", "format": "date-time"},
            "who": {"type": "string", "format": "uuid"},
            "tags": {"type": "array", "items": {"enum": ["v1", "v10", "v"]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["title", "kind", "score", "when"],
        "additionalProperties": False,
    },
    "all optional": {
        "type": "object",
        "properties": {name: {"type": "null"} for name in "abc"},
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"const": 'a"\\\n'}, {"type": "number"}],
        "items": {"type": "boolean"},
        "minItems": 3,
        "maxItems": 4,
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["left"],
                "additionalProperties": False,
            }
        },
    },
    "address": {"type": "array", "items": {"type": "string", "format": "ipv4"}, "minItems": 1, "maxItems": 2},
    "amount": {"type": "integer", "maximum": 12353},
    "empty": {"type": "array", "items": {"type": "string", "maxLength": 0}, "maxItems": 3},
    "email": {"type": "string", "format": "email"},
    "date": {"type": ["string", "null"], "format": "date"},
    "time": {"type": "string", "format": "time"},
    "anything": {},
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    LanguageBuilds(make_language_model(folder / "merged", ["the room is good"])).build(folder / "build", "int8")
    return folder / "build"


@pytest.fixture(scope="module")
def pipeline(build: Path) -> Any:
    return open_language_model(build, cache_bytes=2**24, max_active=8, prefix_caching=True)[0]


@pytest.mark.parametrize("name", _SCHEMAS)
def test_what_a_model_with_random_weights_writes_is_valid(build: Path, pipeline: Any, name: str) -> None:
    import openvino_genai
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(build / "tokenizer.json"))
    schema = _SCHEMAS[name]
    handles = []
    for seed in range(8):
        config = openvino_genai.GenerationConfig(
            max_new_tokens=_LIMIT, do_sample=True, temperature=1.0, rng_seed=seed, stop_token_ids={2}
        )
        config.structured_output_config = openvino_genai.StructuredOutputConfig(grammar=grammar_of(json.dumps(schema)))
        tokens = import_openvino().Tensor(np.asarray([[1, 5, 9 + seed]], dtype=np.int64))
        handles.append(pipeline.add_request(seed, tokens, config))
    while pipeline.has_non_finished_requests():
        pipeline.step()
    texts = []
    for handle in handles:
        (output,) = handle.read_all()
        if output.finish_reason.name == "STOP":
            texts.append(tokenizer.decode(output.generated_ids, skip_special_tokens=True))
    checker = jsonschema.Draft202012Validator(schema, format_checker=_FORMATS)
    for text in texts:
        checker.validate(json.loads(text))
    assert texts, "no answer was complete"
