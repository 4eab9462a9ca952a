"""A language model in ONNX Runtime GenAI as Tidemill served it: a generator for each answer, four in turn."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from benchmarks.engine.worker import resident_mb

_ACTIVE = 4


class Subject:
    def __init__(self, folder: str) -> None:
        import onnxruntime_genai as genai

        genai.disable_telemetry_events()
        self._genai = genai
        self._model = genai.Model(folder)

    def memory(self) -> float:
        return resident_mb()

    def answer(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        began = time.perf_counter()
        waiting, active, first = deque(prompts), deque[list[Any]](), 0.0
        while waiting or active:
            while waiting and len(active) < _ACTIVE:
                active.append([None, waiting.popleft(), tokens])
            item = active.popleft()
            generator: Any = item[0]
            if generator is None:
                generator = item[0] = self._generator(item[1], tokens)
                generator.generate_next_token()
                first = time.perf_counter() - began
            else:
                generator.generate_next_token()
            item[2] -= 1
            if item[2]:
                active.append(item)
        return time.perf_counter() - began, first

    def gaps(self, prompt: list[int], intruder: list[int], tokens: int) -> list[float]:
        running, times = self._generator(prompt, tokens), list[float]()
        for number in range(tokens):
            running.generate_next_token()
            times.append(time.perf_counter())
            if intruder and number == 9:
                self._generator(intruder, 2).generate_next_token()
        return [float(gap) for gap in np.diff(times)]

    def loss(self, prompt: list[int], target: list[int]) -> float:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt) + len(target) + 1, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        nats = 0.0
        for given, wanted in zip([prompt, *([token] for token in target[:-1])], target, strict=True):
            generator.append_tokens(np.asarray(given, dtype=np.int32))
            row = np.asarray(generator.get_logits(), dtype=np.float64).reshape(-1)
            nats += float(row.max() + np.log(np.exp(row - row.max()).sum()) - row[wanted])
        return nats

    def _generator(self, prompt: list[int], tokens: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        length = len(prompt) + tokens
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        return generator
