"""Writes answers with ONNX Runtime GenAI, token by token (a decoupled Triton model)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .prompts import PromptError, Prompts, chat_of
from .scheduler import QueueFullError, Scheduler
from .text_stream import IncrementalDecoder, StopTexts
from .tracing import GEN_AI_INPUT_TOKENS, GEN_AI_OUTPUT_TOKENS, ModelTracing, end_span, otlp_endpoint

STOP, LENGTH = "stop", "length"
_MAX_ACTIVE = 4
_MAX_WAITING = 256


class TritonPythonModel:
    """The model as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the build beside this code and answers once, so that the first caller does not pay for it."""
        import onnxruntime_genai as genai

        genai.disable_telemetry_events()
        folder = Path(args["model_repository"]) / args["model_version"] / "build"
        config = json.loads(args["model_config"])
        log = pb_utils.Logger
        self._tracing = ModelTracing(args["model_name"], args["model_version"], otlp_endpoint(config), log.log_info)
        self._runtime = Runtime.load(genai, folder)
        self._runtime.warm_up()
        self._scheduler = Scheduler(_MAX_ACTIVE, _MAX_WAITING, log.log_error)

    def execute(self, requests: list[Any]) -> None:
        """Takes requests over to the scheduler, which answers them."""
        for request in requests:
            sender = request.get_response_sender()
            span = self._tracing.start("generate", request.parameters())
            try:
                self._scheduler.submit(GenerationJob(self._runtime, Call.read(request), sender, span))
            except (PromptError, QueueFullError) as error:
                code = (
                    pb_utils.TritonError.INVALID_ARG
                    if isinstance(error, PromptError)
                    else pb_utils.TritonError.UNAVAILABLE
                )
                end_span(span, {}, str(error))
                _send_error(sender, str(error), code)

    def finalize(self) -> None:
        """Ends when every answer has been given."""
        self._scheduler.close()
        self._tracing.shutdown()


@dataclass(frozen=True, slots=True)
class Call:
    """What one request asks for. `seed` None is random; `max_tokens` 0 is the model's own limit."""

    text: str | None
    messages_json: str | None
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]

    @classmethod
    def read(cls, request: Any) -> Call:
        """Reads Triton's request.

        Raises:
            PromptError: it has none or both of text and messages_json, or a value out of its range.
        """
        text, messages = _texts(request, "text"), _texts(request, "messages_json")
        if (len(text), len(messages)) not in ((1, 0), (0, 1)):
            raise PromptError("Give exactly one of `text` and `messages_json`, with one element.")
        seed = _number(request, "seed")
        call = cls(
            text=text[0] if text else None,
            messages_json=messages[0] if messages else None,
            max_tokens=int(_number(request, "max_tokens") or 0),
            temperature=float(_number(request, "temperature") or 0.0),
            top_p=float(_number(request, "top_p") or 1.0),
            seed=None if seed is None else int(seed),
            stop=tuple(item for item in _texts(request, "stop") if item),
        )
        if call.max_tokens < 0 or not 0 <= call.temperature <= 2 or not 0 < call.top_p <= 1:
            raise PromptError("Out of range: max_tokens >= 0, 0 <= temperature <= 2, 0 < top_p <= 1.")
        return call


@dataclass(frozen=True, slots=True)
class Runtime:
    """A loaded build: model, tokenizer and what its manifest says."""

    genai: Any
    model: Any
    prompts: Prompts
    decode: Callable[[Sequence[int]], str]
    context_length: int
    max_new_tokens: int
    ends: frozenset[int]

    @classmethod
    def load(cls, genai: Any, folder: Path) -> Runtime:
        """Loads a GenAI folder with `tokenizer.json` and `tidemill.json`."""
        from tokenizers import Tokenizer

        manifest = json.loads((folder / "tidemill.json").read_text(encoding="utf-8"))
        model_config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        model = genai.Model(str(folder))
        # The tokenizer of training and evaluation, not GenAI's own.
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        context_length = int(model_config["context_length"])
        max_new_tokens = int(manifest.get("max_new_tokens") or 256)
        ends = model_config["eos_token_id"]
        prompts = Prompts(
            tokenizer,
            chat_of(folder),
            template=manifest.get("prompt_template", ""),
            max_input_tokens=int(manifest.get("max_input_tokens") or 0),
            context_length=context_length,
            answer_tokens=max_new_tokens,
        )
        return cls(
            genai,
            model,
            prompts,
            lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
            context_length,
            max_new_tokens,
            frozenset(ends if isinstance(ends, list) else [ends]),
        )

    def warm_up(self) -> None:
        """Reads a prompt and writes two tokens."""
        call = Call("warm-up", None, 2, 0.0, 1.0, None, ())
        generator, _ = self.generator(self.prompts.of_text("warm-up"), call)
        for _ in range(2):
            if not generator.is_done():
                generator.generate_next_token()

    def generator(self, prompt: list[int], call: Call) -> tuple[Any, int]:
        """A generator that has read the prompt's tokens in, and the most tokens that it will write."""
        room = self.context_length - len(prompt)
        limit = min(call.max_tokens or self.max_new_tokens, room)
        params = self.genai.GeneratorParams(self.model)
        options: dict[str, Any] = {"max_length": len(prompt) + limit, "do_sample": call.temperature > 0}
        if call.temperature > 0:
            options |= {"temperature": call.temperature, "top_p": call.top_p, "top_k": 0}
            if call.seed is not None:
                # The runtime takes 32 bits, its -1 means random.
                options["random_seed"] = call.seed % (2**31)
        params.set_search_options(**options)
        generator = self.genai.Generator(self.model, params)
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        return generator, limit


class GenerationJob:
    """One answer in the making, sent piece by piece."""

    def __init__(self, runtime: Runtime, call: Call, sender: Any, span: Any) -> None:
        self._runtime = runtime
        self._call = call
        self._sender = sender
        self._span = span
        self._decoder = IncrementalDecoder(runtime.decode)
        self._stops = StopTexts(call.stop)
        self._generator: Any = None
        self._prompt_tokens = self._written = self._limit = 0

    def step(self) -> bool:
        """Writes a token; the first one after reading the prompt. True when the answer is over."""
        if self._sender.is_cancelled():
            self._end("cancelled by the caller")
            _send_error(self._sender, "cancelled by the caller", pb_utils.TritonError.CANCELLED)
            return True
        if self._generator is None:
            self._read_prompt()
        self._generator.generate_next_token()
        token = int(self._generator.get_next_tokens()[0])
        if token in self._runtime.ends:
            self._finish(self._rest(), STOP)
            return True
        self._written += 1
        if self._written == 1 and self._span is not None:
            self._span.add_event("first token")
        text, stopped = self._stops.push(self._decoder.push(token))
        if stopped:
            self._finish(text, STOP)
            return True
        if self._written >= self._limit or self._generator.is_done():
            rest, stopped = self._stops.push(self._decoder.flush())
            self._finish(text + rest + ("" if stopped else self._stops.flush()), STOP if stopped else LENGTH)
            return True
        if text:
            self._send(text, "")
        return False

    def fail(self, error: Exception) -> None:
        """Sends the error as the end."""
        self._end(str(error))
        code = pb_utils.TritonError.INVALID_ARG if isinstance(error, PromptError) else pb_utils.TritonError.INTERNAL
        _send_error(self._sender, str(error), code)

    def _read_prompt(self) -> None:
        call, prompts = self._call, self._runtime.prompts
        prompt = prompts.of_text(call.text) if call.text is not None else prompts.of_messages(call.messages_json or "")
        self._prompt_tokens = len(prompt)
        self._generator, self._limit = self._runtime.generator(prompt, call)

    def _rest(self) -> str:
        text, stopped = self._stops.push(self._decoder.flush())
        return text if stopped else text + self._stops.flush()

    def _finish(self, text: str, reason: str) -> None:
        self._end("")
        self._send(text, reason)

    def _end(self, error: str) -> None:
        # The generator holds the cache of keys and values: the largest piece of memory of a request.
        self._generator = None
        end_span(self._span, {GEN_AI_INPUT_TOKENS: self._prompt_tokens, GEN_AI_OUTPUT_TOKENS: self._written}, error)

    def _send(self, text: str, reason: str) -> None:
        outputs = [
            pb_utils.Tensor("text_delta", np.array([text.encode()], dtype=np.object_)),
            pb_utils.Tensor("finish_reason", np.array([reason.encode()], dtype=np.object_)),
            pb_utils.Tensor("prompt_tokens", np.array([self._prompt_tokens], dtype=np.int32)),
            pb_utils.Tensor("completion_tokens", np.array([self._written], dtype=np.int32)),
        ]
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reason else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=flags)


def _texts(request: Any, name: str) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return []
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in tensor.as_numpy().reshape(-1)]
    except UnicodeDecodeError as error:
        raise PromptError(f"`{name}` is not UTF-8: {error}") from error


def _number(request: Any, name: str) -> float | int | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1 or not np.isfinite(values[0]):
        raise PromptError(f"`{name}` must be one number.")
    number: float | int = values[0].item()
    return number


def _send_error(sender: Any, message: str, code: int) -> None:
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
