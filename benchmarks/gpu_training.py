"""Trains a small language model on a GPU through Tidemill's own loop, and prints as JSON what held.

Run it from the repository's root on a machine with a CUDA device: `python -m benchmarks.gpu_training`. It needs torch,
transformers, peft, numpy, safetensors and pydantic; of Tidemill it imports `services.training.engine`,
`services.training.domain`, the checkpoints and the kit's pure part: no SQLAlchemy, MLflow, OpenVINO, gRPC or Kafka, and
no network. `--device cpu` tries the script itself. It ends with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from services.training.engine.allocation import ALLOCATOR

REQUIRED = ("torch", "transformers", "peft", "numpy", "safetensors", "pydantic")
STEPS, KILL_AT, CHECKPOINT_EVERY = 40, 25, 10
EXAMPLES, PROMPT, TARGET, BATCH = 256, 192, 64, 16
# Relative difference of each step's loss between a killed and resumed run and an uninterrupted one. Sums of a GPU in
# another order differ in their last bits, which training amplifies.
RESUME_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 3e-2}
DEVICE_TOLERANCE = 1e-3
RATES = {"full": 1e-3, "lora": 1e-2}
PLAN_TOLERANCE = 0.10


def shape_of(size: str) -> dict[str, int]:
    """Sizes of the model's configuration."""
    wide = size == "gpu"
    return {
        "vocab_size": 8192 if wide else 256,
        "hidden_size": 512 if wide else 64,
        "intermediate_size": 1536 if wide else 128,
        "num_hidden_layers": 8 if wide else 2,
        "num_attention_heads": 8 if wide else 4,
        "num_key_value_heads": 4 if wide else 2,
        "max_position_embeddings": 512,
    }


def make_model(size: str, dropout: float) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(11)
    sizes: dict[str, Any] = dict(shape_of(size))
    return LlamaForCausalLM(LlamaConfig(**sizes, attention_dropout=dropout, tie_word_embeddings=False))


def make_pairs(size: str) -> Any:
    """Texts with a rule: each token is the one before plus a step that follows from the first token."""
    from services.training.engine.tasks import Pair

    limit = shape_of(size)["vocab_size"]
    length = (PROMPT, TARGET) if size == "gpu" else (24, 8)
    rows = [[1 + (7 * n + (1 + n % 3) * at) % min(97, limit - 2) for at in range(sum(length))] for n in range(EXAMPLES)]
    return [Pair(row[: length[0]], row[length[0] :]) for row in rows], length


def train_once(arguments: argparse.Namespace) -> dict[str, Any]:
    """One training in this process; resumes from the newest checkpoint in its folder."""
    import torch

    from services.training.adapters.checkpoints import CheckpointFolder
    from services.training.domain.training_spec import Optimization
    from services.training.engine.loop import train, usable_precision
    from services.training.engine.memory_plan import Batch, plan_memory
    from services.training.engine.methods import make_method
    from services.training.engine.model_shape import Shape
    from services.training.engine.tasks import CompletionObjective

    device = torch.device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    pairs, length = make_pairs(arguments.size)
    method = make_method(arguments.method, {})
    memory_before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    torch.manual_seed(5)
    model = method.adapt(make_model(arguments.size, arguments.dropout).to(device))
    checkpoints = CheckpointFolder(Path(arguments.folder) / "checkpoints")
    options = Optimization(
        max_steps=arguments.steps, batch_size=BATCH, learning_rate=RATES[arguments.method],
        precision=arguments.precision, checkpoint_every=CHECKPOINT_EVERY,
    )  # fmt: skip
    rates: list[float] = []

    def on_step(progress: Any) -> None:
        rates.append(progress.tokens_per_second)
        if progress.step == arguments.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    outcome = train(
        model, CompletionObjective(pairs, 0), options, device=device, resume=checkpoints.newest(),
        on_step=on_step, on_checkpoint=checkpoints.save,
    )  # fmt: skip
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = Shape.of_config(shape_of(arguments.size))
    used = usable_precision(options.precision, device)
    plan = plan_memory(
        shape,
        Batch(BATCH, sum(length) - 1, length[1]),
        trainable=trainable,
        half=used != "fp32",
        # In fp32 torch kept the score matrices of this model on a GPU (docs/benchmarks.md); in 16 bits it does not.
        eager_attention=used == "fp32",
    )
    return {
        "losses": outcome.losses,
        "used_precision": used,
        "seconds": time.perf_counter() - began,
        "tokens_per_second": sorted(rates)[len(rates) // 2],
        "parameters": sum(p.numel() for p in model.parameters()),
        "planned_parameters": shape.parameters,
        "trainable": trainable,
        # On a processor: the process's greatest size, above that with every library loaded.
        "peak_bytes": torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory_before,
        "planned_peak_bytes": plan.peak,
    }


def child(folder: Path, **options: Any) -> dict[str, Any]:
    """A training in a process of its own; its exit status where it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.gpu_training", "--child", "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ALLOCATOR})
    if done.returncode == -signal.SIGKILL:
        return {"killed": True}
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def furthest(one: list[float], other: list[float]) -> float:
    """The greatest relative difference of two curves."""
    assert len(one) == len(other), (len(one), len(other))
    return max(abs(a - b) / max(abs(a), 1e-2) for a, b in zip(one, other, strict=True))


def examine(device: str, size: str, precisions: list[str]) -> dict[str, Any]:
    import torch

    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "precisions": {},
        "checks": {},
    }
    checks: dict[str, bool] = report["checks"]
    with tempfile.TemporaryDirectory() as place:
        for precision in precisions:
            common = {"device": device, "size": size, "precision": precision, "steps": STEPS, "dropout": 0.1}
            for method in ("full", "lora"):
                name = f"{precision}_{method}"
                folder = Path(place) / name
                print(f"{name} ...", file=sys.stderr, flush=True)
                whole = child(folder / "whole", **common, method=method)
                killed = child(folder / "killed", **common, method=method, kill_at=KILL_AT)
                resumed = child(folder / "killed", **common, method=method)
                apart = furthest(whole["losses"], resumed["losses"])
                found = {key: value for key, value in whole.items() if key != "losses"}
                found |= {
                    "first_loss": whole["losses"][0],
                    "last_loss": whole["losses"][-1],
                    "resume_difference": apart,
                }
                found["plan_error"] = whole["planned_peak_bytes"] / whole["peak_bytes"] - 1
                if device == "cuda":
                    checks[f"{name}: the plan is within 10 % of the peak"] = abs(found["plan_error"]) <= PLAN_TOLERANCE
                report["precisions"][name] = found
                checks[f"{name}: the loss falls"] = mean(whole["losses"][-5:]) < 0.98 * mean(whole["losses"][:5])
                checks[f"{name}: kill -9 killed it"] = killed == {"killed": True}
                checks[f"{name}: resumed as uninterrupted"] = apart <= RESUME_TOLERANCE[precision]
        same = {"size": size, "precision": "fp32", "steps": 5, "dropout": 0.0, "method": "full"}
        here = child(Path(place) / "same-device", device=device, **same)
        there = child(Path(place) / "same-cpu", device="cpu", **same)
        report["device_difference"] = furthest(here["losses"], there["losses"])
        checks["losses agree with the processor's"] = report["device_difference"] <= DEVICE_TOLERANCE
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="gpu", choices=["gpu", "tiny"])
    parser.add_argument("--precisions", default="fp32,bf16,fp16", help="which to try, separated by commas")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("--method", default="full", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--dropout", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        sys.exit(f"missing packages: {', '.join(missing)}")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if arguments.child:
        print(json.dumps(train_once(arguments)))
        return
    report = examine(arguments.device, arguments.size, arguments.precisions.split(","))
    print(json.dumps(report, indent=1))
    sys.exit(0 if all(report["checks"].values()) else 1)


if __name__ == "__main__":
    main()
