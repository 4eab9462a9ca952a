"""A language model in OpenVINO GenAI, by continuous batching, as it is served."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.worker import resident_mb
from services.kit.engine import import_openvino, open_language_model


class Subject:
    def __init__(self, folder: str) -> None:
        self._openvino = import_openvino()
        self._pipeline, _ = open_language_model(
            Path(folder), cache_bytes=512 * 2**20, max_active=16, prefix_caching=False
        )
        self._number = 0

    def memory(self) -> float:
        return resident_mb()

    def answer(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """Seconds until all answers were written, and until the last of them began."""
        began = time.perf_counter()
        handles = [self._add(prompt, tokens) for prompt in prompts]
        waiting = set(range(len(handles)))
        first = 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for at in [at for at in waiting if handles[at].can_read()]:
                waiting.remove(at)
                first = time.perf_counter() - began
        return time.perf_counter() - began, first

    def gaps(self, prompt: list[int], intruder: list[int], tokens: int) -> list[float]:
        """Seconds between the tokens of one answer; the intruder arrives after its tenth token, if there is one."""
        handle, times = self._add(prompt, tokens), list[float]()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if handle.can_read():
                handle.read()
                times.append(time.perf_counter())
                if intruder and len(times) == 10:
                    self._add(intruder, 2)
        return [float(gap) for gap in np.diff(times)]

    def loss(self, prompt: list[int], target: list[int]) -> float:
        """Nats of the target after the prompt."""
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.echo, config.logprobs = 1, False, True, 1
        self._number += 1
        handle = self._pipeline.add_request(self._number, self._tensor(prompt + target), config)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        (output,) = handle.read_all()
        return -float(sum(output.generated_log_probs[len(prompt) : len(prompt) + len(target)]))

    def _add(self, prompt: list[int], tokens: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = tokens, False, True
        self._number += 1
        return self._pipeline.add_request(self._number, self._tensor(prompt), config)

    def _tensor(self, tokens: list[int]) -> Any:
        return self._openvino.Tensor(np.asarray([tokens], dtype=np.int64))
