"""Writes answers with OpenVINO GenAI, many side by side, token by token (a decoupled Triton model)."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .departures import Departures, request_id
from .engine import FAILED, INVALID, TOKENIZERS, import_openvino, open_language_model
from .json_grammar import SchemaError, call_grammar, grammar_of
from .prompts import PromptError, Prompts, chat_of
from .runtimes import manifest_of
from .scheduler import QueueFullError, Scheduler
from .text_stream import IncrementalDecoder, StopTexts
from .tracing import GEN_AI_INPUT_TOKENS, GEN_AI_OUTPUT_TOKENS, ModelTracing, end_span, otlp_endpoint
from .turns import CallerPriority

STOP, LENGTH = "stop", "length"
_MAX_ACTIVE = 16
_MAX_WAITING = 256
_CACHE_BYTES = 512 * 2**20


class TritonPythonModel:
    """The model as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the build beside this code and answers once, so that the first caller does not pay for it."""
        folder = Path(args["model_repository"]) / args["model_version"] / "build"
        config = json.loads(args["model_config"])
        log = pb_utils.Logger
        self._tracing = ModelTracing(args["model_name"], args["model_version"], otlp_endpoint(config), log.log_info)
        self._runtime = Runtime.load(folder)
        self._runtime.warm_up()
        self._departures = Departures()
        self._scheduler = Scheduler(
            self._runtime.pipeline,
            capacity=self._runtime.capacity,
            max_active=_MAX_ACTIVE,
            max_waiting=_MAX_WAITING,
            on_error=log.log_error,
            on_broken=lambda: _end_process(log.log_error),
        )

    def execute(self, requests: list[Any]) -> None:
        """Takes requests over to the scheduler, which answers them."""
        for request in requests:
            sender, parameters = request.get_response_sender(), request.parameters()
            if self._departures.note(parameters):
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            span = self._tracing.start("generate", parameters)
            try:
                turn = CallerPriority.of(parameters)
                has_gone = partial(self._departures.has, request_id(parameters))
                self._scheduler.submit(GenerationJob(self._runtime, Call.read(request), turn, sender, span, has_gone))
            except Exception as error:
                # One that cannot be taken must not end those that came with it.
                end_span(span, {}, str(error))
                _send_error(sender, str(error), _code(error))

    def finalize(self) -> None:
        """Ends when every answer has been given."""
        self._scheduler.close()
        self._tracing.shutdown()


@dataclass(frozen=True, slots=True)
class Call:
    """What one request asks for.

    `seed` None is random; `max_tokens` 0 is the model's own limit; `top_k` 0 is every token; `grammar` is empty for any
    text.
    """

    text: str | None
    messages_json: str | None
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    grammar: str = ""
    logprobs: bool = False
    tools_json: str = ""

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
        tools = _text(request, "tools_json")
        if tools and not messages:
            raise PromptError("`tools_json` goes with `messages_json`.")
        call = cls(
            text=text[0] if text else None,
            messages_json=messages[0] if messages else None,
            max_tokens=int(_number(request, "max_tokens") or 0),
            temperature=float(_number(request, "temperature") or 0.0),
            top_p=float(_number(request, "top_p") or 1.0),
            seed=None if seed is None else int(seed),
            stop=tuple(item for item in _texts(request, "stop") if item),
            top_k=int(_number(request, "top_k") or 0),
            frequency_penalty=float(_number(request, "frequency_penalty") or 0.0),
            presence_penalty=float(_number(request, "presence_penalty") or 0.0),
            repetition_penalty=float(_number(request, "repetition_penalty") or 1.0),
            grammar=_grammar(request, tools),
            logprobs=bool(_number(request, "logprobs")),
            tools_json=tools,
        )
        if call.max_tokens < 0 or not 0 <= call.temperature <= 2 or not 0 < call.top_p <= 1:
            raise PromptError("Out of range: max_tokens >= 0, 0 <= temperature <= 2, 0 < top_p <= 1.")
        if call.top_k < 0 or not 0 < call.repetition_penalty <= 10:
            raise PromptError("Out of range: top_k >= 0, 0 < repetition_penalty <= 10.")
        if max(abs(call.frequency_penalty), abs(call.presence_penalty)) > 2:
            raise PromptError("Out of range: -2 <= frequency_penalty <= 2, -2 <= presence_penalty <= 2.")
        return call


@dataclass(frozen=True, slots=True)
class Runtime:
    """A loaded build: engine, tokenizer and manifest. `capacity`: tokens in the engine's cache."""

    pipeline: Any
    capacity: int
    prompts: Prompts
    decode: Callable[[Sequence[int]], str]
    token_text: Callable[[int], str]
    follows_grammars: bool
    context_length: int
    max_new_tokens: int
    ends: frozenset[int]

    @classmethod
    def load(cls, folder: Path) -> Runtime:
        """Loads a folder with `openvino_model.xml`, `config.json`, `tokenizer.json` and `tidemill.json`.

        Raises:
            ValueError: the build is for another runtime.
        """
        from tokenizers import Tokenizer

        manifest = manifest_of(folder)
        pipeline, capacity = open_language_model(
            folder, cache_bytes=_CACHE_BYTES, max_active=_MAX_ACTIVE, prefix_caching=True
        )
        # The tokenizer of training and evaluation, not the engine's.
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        context_length = min(int(config.get("max_position_embeddings") or capacity), capacity)
        max_new_tokens = int(manifest.get("max_new_tokens") or 256)
        prompts = Prompts(
            tokenizer,
            chat_of(folder),
            template=manifest.get("prompt_template", ""),
            max_input_tokens=int(manifest.get("max_input_tokens") or 0),
            context_length=context_length,
            answer_tokens=max_new_tokens,
        )
        return cls(
            pipeline,
            capacity,
            prompts,
            lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
            lambda token: str(tokenizer.decode([token], skip_special_tokens=False)),
            all((folder / name).is_file() for name in TOKENIZERS),
            context_length,
            max_new_tokens,
            _ends(folder, config),
        )

    def warm_up(self) -> None:
        """Reads a prompt and writes two tokens."""
        prompt = self.prompts.of_text("warm-up")
        self.add(0, prompt, 2, Call("warm-up", None, 2, 0.0, 1.0, None, ()))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()

    def prompt(self, call: Call) -> tuple[list[int], int]:
        """The tokens that are to be answered, and how many of the text were left out at its end.

        Raises:
            PromptError: there are none, or too many, or this build cannot follow a JSON schema.
        """
        if call.grammar and not self.follows_grammars:
            what = "tools need" if call.tools_json else "a JSON schema needs"
            raise PromptError(f"This version was built without what {what}: train and publish it again.")
        if call.text is not None:
            return self.prompts.cut_to_fit(call.text)
        return self.prompts.of_messages(call.messages_json or "", call.tools_json), 0

    def limit(self, call: Call, prompt: Sequence[int]) -> int:
        """Maximum number of tokens of an answer."""
        return min(call.max_tokens or self.max_new_tokens, self.context_length - len(prompt))

    def add(self, number: int, prompt: Sequence[int], limit: int, call: Call) -> Any:
        """Adds a request to the engine; returns its handle."""
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.stop_token_ids = limit, set(self.ends)
        config.do_sample = call.temperature > 0
        if config.do_sample:
            config.temperature, config.top_p = call.temperature, call.top_p
            # Without one of its own every request would have the same.
            config.rng_seed = (secrets.randbits(31) if call.seed is None else call.seed) % 2**31
            if call.top_k:
                config.top_k = call.top_k
        config.frequency_penalty, config.presence_penalty = call.frequency_penalty, call.presence_penalty
        config.repetition_penalty = call.repetition_penalty
        config.logprobs = int(call.logprobs)
        if call.grammar:
            config.structured_output_config = openvino_genai.StructuredOutputConfig(grammar=call.grammar)
        tokens = import_openvino().Tensor(np.asarray([prompt], dtype=np.int64))
        return self.pipeline.add_request(number, tokens, config)


class GenerationJob:
    """One answer while it is written, sent piece by piece."""

    def __init__(
        self,
        runtime: Runtime,
        call: Call,
        turn: CallerPriority,
        sender: Any,
        span: Any,
        has_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reads the prompt; `has_gone` says whether its caller has.

        Raises:
            PromptError: it has no tokens, or too many.
        """
        self._runtime, self._call, self._sender, self._span = runtime, call, sender, span
        self.turn = turn
        self._has_gone = has_gone
        self._decoder = IncrementalDecoder(runtime.decode)
        self._stops = StopTexts(call.stop)
        self._prompt, self._truncated = runtime.prompt(call)
        self._limit = runtime.limit(call, self._prompt)
        self._written = 0
        # Tokens and their log probabilities that are not sent yet.
        self._texts: list[str] = []
        self._logprobs: list[float] = []

    @property
    def cost(self) -> int:
        """See `Work`."""
        return len(self._prompt) + self._limit

    def start(self, pipeline: Any, number: int) -> Any:
        """See `Work`."""
        return self._runtime.add(number, self._prompt, self._limit, self._call)

    def is_cancelled(self) -> bool:
        """See `Work`."""
        # The connection, too: a gateway that died reports nothing.
        return self._has_gone() or bool(self._sender.is_cancelled())

    def cancel(self) -> None:
        """See `Work`."""
        self._end("cancelled by the caller")
        _send_error(self._sender, "cancelled by the caller", pb_utils.TritonError.CANCELLED)

    def fail(self, error: Exception) -> None:
        """Sends the error as the end."""
        self._end(str(error))
        _send_error(self._sender, str(error), _code(error))

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], ended: bool) -> bool:
        """See `Work`."""
        text = ""
        for token, logprob in zip(tokens, logprobs, strict=True):
            if token in self._runtime.ends:
                return self._finish(text + self._rest(), STOP)
            self._written += 1
            if self._call.logprobs:
                self._texts.append(self._runtime.token_text(token))
                self._logprobs.append(logprob)
            if self._written == 1 and self._span is not None:
                self._span.add_event("first token")
            piece, stopped = self._stops.push(self._decoder.push(token))
            text += piece
            if stopped:
                return self._finish(text, STOP)
        if self._written >= self._limit:
            rest, stopped = self._stops.push(self._decoder.flush())
            return self._finish(text + rest + ("" if stopped else self._stops.flush()), STOP if stopped else LENGTH)
        if ended and self._call.grammar:
            return self._finish(text + self._rest(), STOP)
        if ended:
            raise RuntimeError("the engine ended the answer without a reason")
        if text:
            self._send(text, "")
        return False

    def _rest(self) -> str:
        text, stopped = self._stops.push(self._decoder.flush())
        return text if stopped else text + self._stops.flush()

    def _finish(self, text: str, reason: str) -> bool:
        self._end("")
        self._send(text, reason)
        return True

    def _end(self, error: str) -> None:
        usage: dict[str, int | str] = {GEN_AI_INPUT_TOKENS: len(self._prompt), GEN_AI_OUTPUT_TOKENS: self._written}
        end_span(self._span, usage, error)

    def _send(self, text: str, reason: str) -> None:
        outputs = [
            pb_utils.Tensor("text_delta", np.array([text.encode()], dtype=np.object_)),
            pb_utils.Tensor("finish_reason", np.array([reason.encode()], dtype=np.object_)),
            pb_utils.Tensor("prompt_tokens", np.array([len(self._prompt)], dtype=np.int32)),
            pb_utils.Tensor("truncated_tokens", np.array([self._truncated], dtype=np.int32)),
            pb_utils.Tensor("completion_tokens", np.array([self._written], dtype=np.int32)),
            pb_utils.Tensor("tokens", np.array([item.encode() for item in self._texts], dtype=np.object_)),
            pb_utils.Tensor("logprobs", np.array(self._logprobs, dtype=np.float32)),
        ]
        self._texts, self._logprobs = [], []
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reason else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=flags)


def _end_process(log: Callable[[str], None]) -> None:
    """A model whose process died is loaded again; an engine that fails at each step would not recover by itself."""
    log("the engine fails at every step; its process ends and the model is loaded again")
    os._exit(1)


def _ends(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    """Tokens that end an answer, by generation_config.json, else config.json."""
    file = folder / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def _texts(request: Any, name: str) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return []
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in tensor.as_numpy().reshape(-1)]
    except UnicodeDecodeError as error:
        raise PromptError(f"`{name}` is not UTF-8: {error}") from error


def _text(request: Any, name: str) -> str:
    texts = _texts(request, name)
    if len(texts) > 1:
        raise PromptError(f"`{name}` must be one text.")
    return texts[0] if texts else ""


def _grammar(request: Any, tools: str) -> str:
    schema, name = _text(request, "json_schema"), "tools_json" if tools else "json_schema"
    if schema and tools:
        raise PromptError("Give one of `json_schema` and `tools_json`.")
    try:
        if tools:
            return call_grammar(tools, _text(request, "tool_choice") or "auto")
        return grammar_of(schema) if schema else ""
    except SchemaError as error:
        raise PromptError(f"`{name}`: {error}") from error


def _number(request: Any, name: str) -> float | int | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1 or not np.isfinite(values[0]):
        raise PromptError(f"`{name}` must be one number.")
    number: float | int = values[0].item()
    return number


def _code(error: Exception) -> Any:
    codes = pb_utils.TritonError
    if isinstance(error, PromptError):
        return codes.INVALID_ARG
    return codes.UNAVAILABLE if isinstance(error, QueueFullError) else codes.INTERNAL


def _send_error(sender: Any, message: str, code: Any) -> None:
    message = {pb_utils.TritonError.INVALID_ARG: INVALID, pb_utils.TritonError.INTERNAL: FAILED}.get(code, "") + message
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
