"""What every encoder is asked, whatever runs it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.engine.worker import resident_mb


class Encoder(ABC):
    """One text a request; callers ask side by side, and each request is computed by one thread."""

    @abstractmethod
    def logits(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[1, length] int64 to [1, labels]."""

    def memory(self) -> float:
        return resident_mb()

    def rate(self, texts: list[list[int]], callers: int) -> float:
        """Texts a second."""
        arrays = [np.asarray([text], dtype=np.int64) for text in texts]
        began = time.perf_counter()
        if callers == 1:
            for array in arrays:
                self.logits(array)
        else:
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(self.logits, arrays))
        return len(arrays) / (time.perf_counter() - began)

    def answers(self, texts: list[list[int]]) -> list[int]:
        """Index of the label of each text."""
        return [int(np.argmax(self.logits(np.asarray([text], dtype=np.int64)))) for text in texts]
