"""Base models as folders in Hugging Face's layout: prepared once from files in packages, or any local folder.

SmolLM2-135M-Instruct (Apache-2.0) comes as GGUF (Q4_1), bge-small-zh-v1.5 (Apache-2.0) as fp32 ONNX; both become
safetensors with their tokenizer, so that later loads take a second and no other format. all-MiniLM-L6-v2 (Apache-2.0)
is safetensors already.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, NotFoundError
from services.kit.ids import new_id, sha256_hex
from services.kit.storage.artifacts import digest_folder
from services.training.adapters.model_roots import ModelRoots
from services.training.domain.tasks import Architecture
from services.training.domain.training_spec import BaseModel

logger = logging.getLogger(__name__)

# Increased when a conversion changes, so that prepared folders are created again.
_CONVERSION = 1
_MARKER = "tidemill-base.json"
_SMOLLM2: Mapping[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}
_BGE: Mapping[str, Any] = {
    "vocab_size": 21128,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.1,
}
_MINILM: Mapping[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A model from a package: its architecture, its context in tokens, and how its file is converted to a folder."""

    architecture: Architecture
    context_length: int
    convert: Callable[[Path, Path], None]
    family: str
    """`model_type` of its configuration."""
    config: Mapping[str, Any]
    """Sizes, as in the `config.json` that the conversion writes."""


class BaseModels:
    """Base models by name, prepared below `models_dir` from files below `downloads_dir`."""

    def __init__(self, models_dir: Path, downloads_dir: Path, roots: ModelRoots | None = None) -> None:
        """`roots` bounds the folders that callers may name; None in a worker, whose run the service has checked."""
        self._models = models_dir
        self._roots = roots
        self._downloads = downloads_dir
        self._packaged = {
            "smollm2-135m-instruct": _Packaged("causal", 8192, _convert_smollm2, "llama", _SMOLLM2),
            "bge-small-zh-v1.5": _Packaged("encoder", 512, _convert_bge, "bert", _BGE),
            "all-minilm-l6-v2": _Packaged("encoder", 512, _convert_minilm, "bert", _MINILM),
        }

    def names(self) -> list[str]:
        """Names that can be prepared."""
        return sorted(self._packaged)

    def prepare(self, name: str) -> Path:
        """The folder of a base model, which is a name from `names` or an existing folder; converts it if needed.

        Raises:
            NotFoundError: it is neither a known name nor a model's folder.
            InvalidArgumentError, PermissionDeniedError: the folder is not one that may be read.
            FailedPreconditionError: its package's file has not been fetched.
        """
        if name not in self._packaged:
            folder = Path(name).expanduser()
            # A word without a slash is a name that was misspelt.
            if self._roots is not None and "/" in name:
                self._roots.check(folder)
            if (self._roots is None or "/" in name) and (folder / "config.json").is_file():
                return folder
            wrong = f"{name!r} is neither one of {', '.join(self.names())} nor a folder with a config.json"
            raise NotFoundError(
                f"spec.base_model: {wrong}",
                reason="BASE_MODEL_NOT_FOUND",
                metadata={"base_model": name},
                violations=[FieldViolation("spec.base_model", wrong)],
            )
        target = self._models / name
        if self._is_current(target):
            return target
        source, convert = self._source(name), self._packaged[name].convert
        logger.info("preparing base model %s (once)", name)
        partial = self._models / f".{name}.{new_id()}"
        partial.mkdir(parents=True)
        try:
            convert(source, partial)
            marker = {"conversion": _CONVERSION, "digest": digest_folder(partial)}
            (partial / _MARKER).write_text(json.dumps(marker))
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def find(self, name: str) -> BaseModel:
        """See `services.training.app.ports.BaseModels`. Converts nothing: the files of known names are pinned."""
        if name in self._packaged:
            if not self._is_current(self._models / name):
                self._source(name)
            known = self._packaged[name]
            identity = sha256_hex(name, str(_CONVERSION))
            sizes = _sizes(known.config)
            return BaseModel(name, identity, known.architecture, known.context_length, known.family, *sizes)
        folder = self.prepare(name)
        return _described(name, folder, self.digest(folder))

    def config(self, name: str) -> Mapping[str, Any]:
        """See `services.training.app.ports.BaseModels`; of a folder `config.json` alone is read."""
        if name in self._packaged:
            return self._packaged[name].config
        return _config_of(name, self.prepare(name))

    def digest(self, folder: Path) -> str:
        """sha256 over the model's files; read from the marker if `prepare` created the folder."""
        marker = folder / _MARKER
        if marker.is_file():
            return str(json.loads(marker.read_text())["digest"])
        return digest_folder(folder)

    def _source(self, name: str) -> Path:
        source = self._downloads / name
        if not source.is_dir():
            raise FailedPreconditionError(
                f"The file of base model {name} is not in {source}; `tidemill run FILE`, with a pipeline file that "
                "names the model, fetches it.",
                reason="BASE_MODEL_NOT_FETCHED",
                metadata={"base_model": name},
            )
        return source

    @staticmethod
    def _is_current(folder: Path) -> bool:
        marker = folder / _MARKER
        return marker.is_file() and json.loads(marker.read_text()).get("conversion") == _CONVERSION


def _described(name: str, folder: Path, digest: str) -> BaseModel:
    """Reads a model's own configuration."""
    if not any(folder.glob("*.safetensors")):
        wrong = (
            f"{name} has no *.safetensors files; other weight formats (.bin, .pt, .pkl) can run code and are not loaded"
        )
        raise InvalidArgumentError(
            f"spec.base_model: {wrong}",
            reason="BASE_MODEL_NOT_SAFETENSORS",
            violations=[FieldViolation("spec.base_model", wrong)],
        )
    config = _config_of(name, folder)
    architectures, limit = config.get("architectures") or [], config.get("max_position_embeddings")
    if config.get("is_encoder_decoder"):
        return BaseModel(name, digest, None, limit)
    causal = any(item.endswith(("ForCausalLM", "LMHeadModel")) for item in architectures)
    architecture: Architecture = "causal" if causal else "encoder"
    return BaseModel(name, digest, architecture, limit, str(config.get("model_type", "")), *_sizes(config))


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int, int, int]:
    """Layers, heads of a layer, tokens, width, heads of keys, and width of feed-forward layers.

    Zero where a configuration does not say it as BERT's does.
    """
    names = ("num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_size", "intermediate_size")
    layers, heads, vocabulary, width, feed_forward = (int(config.get(name) or 0) for name in names)
    return layers, heads, vocabulary, width, int(config.get("num_key_value_heads") or heads), feed_forward


def _config_of(name: str, folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict):
            raise TypeError("it is not a JSON object")
    except (ValueError, TypeError) as error:
        wrong = f"{name}/config.json cannot be read: {error}"
        raise InvalidArgumentError(
            f"spec.base_model: {wrong}", violations=[FieldViolation("spec.base_model", wrong)]
        ) from error
    return config


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FailedPreconditionError(f"{folder} must contain one {pattern}, it contains {len(found)}; fetch it again.")
    return found[0]


@contextmanager
def _cached_results(module: str, *names: str) -> Iterator[None]:
    """Caches the results of some functions of a module within the block.

    transformers reads a GGUF file three times and computes the same table of names for each module of the model, which
    takes most of the time of a conversion.
    """
    place = importlib.import_module(module)
    before = {name: getattr(place, name) for name in names}
    for name, function in before.items():
        setattr(place, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(place, name, function)


def _convert_smollm2(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = _only(source, "*.gguf").name
    with _cached_results("gguf", "GGUFReader", "get_tensor_name_map"):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(source), gguf_file=file)
        model: Any = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=file, dtype=torch.float32)
    # transformers still considers the model quantized and would refuse to save it.
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(str(target), safe_serialization=True)
    tokenizer.save_pretrained(str(target))


def _convert_bge(source: Path, target: Path) -> None:
    import onnx
    import torch
    from onnx import numpy_helper
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    graph = onnx.load(str(_only(source, "*.onnx"))).graph
    initializers = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    # Linear weights have no names and are stored transposed; each is identified by the MatMul that uses it.
    linear = {
        node.name.strip("/").removesuffix("/MatMul").replace("/", "."): initializers[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in initializers
    }
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(_only(source, "*tokenizer.json")),
        unk_token="[UNK]",  # noqa: S106 - a vocabulary entry
        sep_token="[SEP]",  # noqa: S106 - a vocabulary entry
        pad_token="[PAD]",  # noqa: S106 - a vocabulary entry
        cls_token="[CLS]",  # noqa: S106 - a vocabulary entry
        mask_token="[MASK]",  # noqa: S106 - a vocabulary entry
        model_max_length=512,
    )
    model = BertModel(BertConfig(**_BGE))
    state = model.state_dict()
    for name in state:
        if name.removesuffix(".weight") in linear and name.endswith(".weight"):
            state[name] = torch.from_numpy(linear[name.removesuffix(".weight")].copy())
        elif name in initializers:
            state[name] = torch.from_numpy(initializers[name].copy())
        elif not name.startswith("pooler") and "position_ids" not in name and "token_type_ids" not in name:
            raise FailedPreconditionError(f"The ONNX file of bge-small-zh-v1.5 lacks {name}; fetch it again.")
    model.load_state_dict(state)
    model.save_pretrained(str(target), safe_serialization=True)
    tokenizer.save_pretrained(str(target))


def _convert_minilm(source: Path, target: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
    # Its file cuts and fills each text to 128 tokens; here each run says its own length.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model: Any = AutoModel.from_pretrained(str(source))
    model.save_pretrained(str(target), safe_serialization=True)
    tokenizer.save_pretrained(str(target))
