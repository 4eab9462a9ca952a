"""Checkpoints on disk: safetensors and JSON, no pickle; the newest is complete or absent, even after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from services.kit.ids import new_id
from services.training.engine.loop import Checkpoint

_ACCELERATOR, _RANKS = "accelerator.safetensors", "ranks.safetensors"


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder; in the order of their names they are in that of their steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The step of a checkpoint, by its folder's name."""
    return int(name.removeprefix("step-"))


class CheckpointFolder:
    """The checkpoints of one run; only the newest is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> Path:
        """Stores a checkpoint and then removes the ones before it; its folder."""
        from safetensors.torch import save_file

        partial = self._folder / f".partial-{new_id()}"
        partial.mkdir(parents=True)
        target = self._folder / folder_name(checkpoint.step)
        try:
            save_file(checkpoint.weights, partial / "weights.safetensors")
            save_file(checkpoint.optimizer, partial / "optimizer.safetensors")
            save_file({"random_state": checkpoint.random_state}, partial / "random.safetensors")
            if checkpoint.accelerator:
                save_file(checkpoint.accelerator, partial / _ACCELERATOR)
            if checkpoint.ranks:
                save_file(checkpoint.ranks, partial / _RANKS)
            (partial / "state.json").write_text(json.dumps({"step": checkpoint.step, "losses": checkpoint.losses}))
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except BaseException:
            # On a full disk the previous checkpoint stays, and the incomplete one must not keep the disk full.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for other in self._folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint; None before the first."""
        from safetensors.torch import load_file

        found = sorted(self._folder.glob("step-*")) if self._folder.is_dir() else []
        if not found:
            return None
        state = json.loads((found[-1] / "state.json").read_text())
        return Checkpoint(
            state["step"],
            load_file(found[-1] / "weights.safetensors"),
            load_file(found[-1] / "optimizer.safetensors"),
            load_file(found[-1] / "random.safetensors")["random_state"],
            state["losses"],
            *(load_file(path) if (path := found[-1] / name).is_file() else {} for name in (_ACCELERATOR, _RANKS)),
        )
