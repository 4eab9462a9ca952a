"""Peak resident bytes of a process that does nothing but serve a build: `encoder|causal FOLDER LENGTH ANSWER`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.machine import resident_bytes
from services.kit.engine import open_encoder


def serve(architecture: str, folder: Path, length: int, answer: int) -> int:
    """Answers a text of `length` tokens here and returns the peak."""
    if architecture == "encoder":
        import numpy as np

        request, ids = open_encoder(folder, threads=1).create_infer_request(), np.ones((1, length), dtype=np.int64)
        for _ in range(3):
            request.infer({"input_ids": ids, "attention_mask": ids})
    else:
        from services.training.adapters.language_builds import Engine

        Engine(folder).answer([2 + at for at in range(length)], answer, 1)
    return resident_bytes("VmHWM")


if __name__ == "__main__":
    print(serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
