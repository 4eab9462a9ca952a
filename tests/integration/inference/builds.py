"""Small real builds, made in seconds: a classifier and a language model, in the layout that training writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.kit.storage.artifacts import digest_folder
from services.kit.storage.signing import MANIFEST, SIGNATURE, SigningKey
from tests.models import make_language_model

LABELS = ("negative", "positive")
WORDS = ("[PAD]", "[UNK]", "bad", "awful", "good", "lovely", "the", "room", "is")
TEMPLATE = "Write a headline.\n\n{text}"
SENTENCES = ("the room is good and lovely", "a headline of the article", "user assistant system", "房间很好", "Ünïcödé")


def signing_key(folder: Path) -> SigningKey:
    """The key that signs the builds in a folder."""
    key = SigningKey(folder / "keys" / "signing.pem", folder / "keys" / "trusted")
    key.ensure()
    return key


def _finish(folder: Path, manifest: Mapping[str, Any]) -> str:
    digest = digest_folder(folder, without=[MANIFEST, SIGNATURE])
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": digest}, ensure_ascii=False))
    signing_key(folder.parent).sign(folder)
    return digest


def make_classifier(folder: Path, *, weight: float = 2.0, labels: Sequence[str] = LABELS, spoil: bool = False) -> str:
    """Says positive to good words and negative to bad ones; a negative `weight` turns it round.

    It is signed with the `signing_key` of the folder around it.

    With `spoil` its weights are cut off. Returns the digest.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    table = np.zeros((len(WORDS), len(labels)), dtype=np.float32)
    for word, sign in (("bad", 0), ("awful", 0), ("good", 1), ("lovely", 1)):
        table[WORDS.index(word), sign] = weight
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    tensors = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "middle"),
    ]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(labels)])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    if spoil:
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:40])
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return _finish(
        folder,
        {
            "task": "text_classification",
            "runtime": "onnxruntime",
            "precision": "fp32",
            "base_model": "test",
            "labels": list(labels),
            "max_input_tokens": 64,
        },
    )


def finish_generator(folder: Path) -> str:
    """Writes the manifest of a generator; returns the digest."""
    return _finish(
        folder,
        {
            "task": "generation",
            "runtime": "onnxruntime-genai",
            "precision": "fp32",
            "base_model": "test",
            "prompt_template": TEMPLATE,
            "max_input_tokens": 128,
            "max_new_tokens": 16,
        },
    )


def make_generator(folder: Path, scratch: Path) -> str:
    """A language model with random weights, context 256; what it writes is noise, the same noise each time."""
    merged = make_language_model(scratch / "merged", SENTENCES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(merged), "-o", str(folder)]
    builder += ["-p", "fp32", "-e", "cpu", "-c", str(scratch / "cache"), "--extra_options", "prune_lm_head=true"]
    done = subprocess.run(builder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return finish_generator(folder)
