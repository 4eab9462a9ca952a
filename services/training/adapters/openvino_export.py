"""Converts torch modules to OpenVINO models, without a file in between.

A causal language model is converted to the form that OpenVINO GenAI serves: its key-value cache is state of the model,
not inputs and outputs (OpenVINO, "Stateful models and State API"). The engine turns that into paged attention.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from services.kit.engine import EMBEDDING, LOGITS, import_openvino
from services.kit.errors import FailedPreconditionError

logger = logging.getLogger(__name__)

_PARTS = ("key", "value")


def language_model(folder: Path) -> Any:
    """A causal language model in Hugging Face's layout as a stateful `openvino.Model` in fp32.

    Inputs: input_ids, attention_mask (past and present), position_ids, all int64 [batch, length], and beam_idx int32
    [batch], the row of the state that each row continues. Output: logits fp32 [batch, length, vocabulary].

    Raises:
        FailedPreconditionError: the engine cannot page the model's kind of attention.
    """
    import torch
    from transformers import AutoModelForCausalLM

    ov = import_openvino()
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    made: Any = AutoModelForCausalLM
    model = made.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
    ).eval()
    with torch.no_grad():
        # Shapes of the cache, [batch, heads, length, width] each, taken from the model: those of keys and values may
        # differ.
        states = _states(model(input_ids=torch.ones(2, 3, dtype=torch.long), use_cache=True).past_key_values, folder)
        present = torch.ones(2, 4, dtype=torch.long)
        example = (present, torch.ones(2, 7, dtype=torch.long), torch.arange(3, 7)[None].expand(2, 4), *states)
        converted = _converted(ov, _stateless(model), example)
    layers = len(states) // 2
    names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in _PARTS]
    later = [name.replace("past_key_values", "present") for name in names]
    for port, name in zip(converted.outputs, ["logits", *later], strict=True):
        port.get_tensor().set_names({name})
    shapes = [[-1, -1]] * 3 + [[-1, state.shape[1], -1, state.shape[3]] for state in states]
    inputs = zip(converted.inputs, ["input_ids", "attention_mask", "position_ids", *names], shapes, strict=True)
    pasts = []
    for port, name, shape in inputs:
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape(shape))
        if name in names:
            pasts.append(port)
        else:
            port.get_node().set_element_type(ov.Type.i64)
    converted.validate_nodes_and_infer_types()
    rows = ops.parameter(name="beam_idx", dtype=ov.Type.i32, shape=ov.PartialShape([-1]))
    rows.output(0).get_tensor().add_names({"beam_idx"})
    converted.add_parameters([rows])
    for port in pasts:
        readers = port.get_target_inputs()
        chosen = ops.gather(port, rows, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    converted.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(converted, dict(zip(names, later, strict=True)))
    _start_empty(converted, ops)
    return converted


def tokenizers_of(folder: Path) -> tuple[Any, Any] | None:
    """The tokenizer of a model in Hugging Face's layout as two `openvino.Model`, one for each direction.

    Prompts and answers do not pass through them (`services.kit.prompts`); the engine learns from them what each token
    spells, which it needs to hold an answer to a grammar.

    Returns:
        None if it is of a kind that cannot be converted: builds without it answer all but requests with a JSON schema.
    """
    from transformers import AutoTokenizer

    import_openvino()
    from openvino.exceptions import OVTypeError, UserInputError
    from openvino_tokenizers import convert_tokenizer

    load: Any = AutoTokenizer
    tokenizer = load.from_pretrained(str(folder), trust_remote_code=False)
    try:
        forth, back = cast("Any", convert_tokenizer)(tokenizer, with_detokenizer=True)
    except (OVTypeError, UserInputError) as error:
        logger.warning("builds of this model cannot follow a JSON schema: its tokenizer cannot be converted: %s", error)
        return None
    return forth, back


def _converted(ov: Any, module: Any, example: tuple[Any, ...]) -> Any:
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings():
        # The warnings are about torch.jit being deprecated, and about lengths that become constants; ours do not.
        warnings.simplefilter("ignore")
        # torch's own check computes everything twice; the build's answers are compared with the module's later anyway.
        decoder = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={"check_trace": False})
        return ov.convert_model(decoder, example_input=example)


def _states(cache: Any, folder: Path) -> list[Any]:
    from transformers.cache_utils import DynamicLayer

    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers}))
        raise FailedPreconditionError(
            f"The model in {folder.name} keeps its past in {kinds}; only full attention over all of a text can be "
            "served. Choose another base model.",
            reason="ATTENTION_UNSUPPORTED",
        )
    return [state for layer in cache.layers for state in (layer.keys, layer.values)]


def _stateless(model: Any) -> Any:
    """The model as a module of tensors only: the cache goes in and out as `past`, alternating keys and values."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Stateless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            cache, make_layer = DynamicCache(), cast("Any", DynamicLayer)
            for at in range(0, len(past), 2):
                # `cache.update` cannot be traced: it branches on whether the layer is empty.
                layer: Any = make_layer()
                layer.keys, layer.values = past[at], past[at + 1]
                layer.dtype, layer.device, layer.is_initialized = past[at].dtype, past[at].device, True
                cache.layers.append(layer)
            length, whole = input_ids.shape[1], attention_mask.shape[1]
            rows = torch.arange(length) + (whole - length)
            causal = torch.arange(whole)[None, :] <= rows[:, None]
            # transformers uses a four-dimensional mask unchanged; its own needs values, which tracing does not have.
            mask = causal[None, None] & attention_mask[:, None, None, :].bool()
            answer = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            layers = answer.past_key_values.layers
            return (answer.logits, *(state for layer in layers for state in (layer.keys, layer.values)))

    return Stateless()


def _start_empty(model: Any, ops: Any) -> None:
    """Gives every state an initial value of length 0. The engine treats a state without one as an input."""
    batch = ops.gather(ops.shape_of(model.input("input_ids"), output_type="i64"), ops.constant([0]), ops.constant(0))
    for operation in model.get_ops():
        if operation.get_type_name() == "ReadValue" and operation.get_input_size() == 0:
            fixed = [ops.constant([extent.min_length]) for extent in operation.get_output_partial_shape(0)][1:]
            shape = ops.concat([batch, *fixed], axis=0)
            nothing = ops.constant(0.0, dtype=operation.get_output_element_type(0))
            operation.set_arguments([ops.broadcast(nothing, shape)])
    model.validate_nodes_and_infer_types()


def encoder(model: Any, *, vocabulary: int, outputs: Sequence[str] = (LOGITS, EMBEDDING)) -> Any:
    """An encoder as `openvino.Model`: input_ids, attention_mask int64 [batch, length]; logits fp32 [batch, labels].

    Args:
        model: a torch module that maps the two inputs to logits, or to logits and an embedding fp32 [batch, width],
            which is a second output then.
        vocabulary: number of token ids.
        outputs: the names of what the module gives, where that is something else; it may give less.
    """
    import torch

    ov = import_openvino()
    model.eval()
    ids = torch.randint(1, vocabulary, (2, 16))
    with torch.no_grad():
        converted = _converted(ov, model, (ids, torch.ones_like(ids)))
    for port, name in zip(converted.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape([-1, -1]))
        port.get_node().set_element_type(ov.Type.i64)
    for port, name in zip(converted.outputs, outputs, strict=False):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    return converted
