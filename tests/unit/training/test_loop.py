"""The training loop: interrupted and resumed is the same as never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from services.training.adapters.checkpoints import CheckpointFolder
from services.training.adapters.job import Job
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, Precision, TrainingSpec
from services.training.engine.loop import (
    Cancelled,
    Checkpoint,
    accelerator_state,
    load_accelerator,
    train,
    usable_precision,
)
from services.training.engine.methods.lora import Lora
from services.training.worker.phases import precision_warnings


class LineObjective:
    """Fits a line."""

    lengths: Sequence[int] = [1 + i % 5 for i in range(40)]

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        x = torch.tensor([[float(i) / 40] for i in indices], device=device)
        loss: Tensor = ((model(x) - 3 * x) ** 2).mean()
        return loss, len(indices)

    def targets(self, indices: Sequence[int]) -> int:
        return len(indices)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.3), nn.Linear(4, 1))


def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    options = Optimization(max_steps=12, batch_size=4, checkpoint_every=100, learning_rate=0.01)
    device, objective = torch.device("cpu"), LineObjective()
    whole = model()
    expected = train(whole, objective, options, device=device)

    folder = CheckpointFolder(tmp_path / "checkpoints")
    seen: list[int] = []
    with pytest.raises(Cancelled):
        train(
            model(),
            objective,
            options,
            device=device,
            on_step=lambda progress: seen.append(progress.step),
            on_checkpoint=folder.save,
            should_stop=lambda: len(seen) == 5,
        )
    resumed = model()
    checkpoint = folder.newest()
    assert checkpoint is not None
    assert checkpoint.step == 5
    found = train(resumed, objective, options, device=device, resume=checkpoint)
    assert found.losses == expected.losses
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


class UnevenObjective(LineObjective):
    """Fits a line whose points have as many targets as their length says."""

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        targets = torch.tensor([i for i in indices for _ in range(self.lengths[i])], device=device)
        return super().loss(model, targets.tolist(), device)

    def targets(self, indices: Sequence[int]) -> int:
        return sum(self.lengths[i] for i in indices)


def test_accumulated_batches_are_one_large_batch() -> None:
    def learnt(batch_size: int, accumulation: int) -> tuple[list[float], nn.Module]:
        torch.manual_seed(1)
        line = nn.Linear(1, 1)
        options = Optimization(
            max_steps=6, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=0.05
        )
        return train(line, UnevenObjective(), options, device=torch.device("cpu")).losses, line

    losses, line = learnt(40, 1)
    # Batches are of texts of one length, so these five have 8 to 40 targets.
    accumulated, same = learnt(8, 5)
    assert accumulated == pytest.approx(losses, rel=1e-5)
    for a, b in zip(line.parameters(), same.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4)


def test_a_loss_that_is_not_finite_names_the_field() -> None:
    options = Optimization(max_steps=3, batch_size=4, learning_rate=0.1)
    broken = model()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"optimization\.learning_rate"):
        train(broken, LineObjective(), options, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("wanted", "has_bf16", "used", "warned"),
    [
        ("fp32", True, "fp32", False),
        ("bf16", True, "bf16", False),
        ("bf16", False, "fp32", True),
        ("fp16", True, "fp32", True),
        ("auto", True, "bf16", False),
        ("auto", False, "fp32", False),
    ],
)
def test_a_processor_computes_in_what_it_has(
    wanted: Precision, has_bf16: bool, used: Precision, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    device = torch.device("cpu")
    assert usable_precision(wanted, device) == used
    task = TextClassificationTask("label")
    spec = TrainingSpec("m", "b", "d", "", "0" * 64, task, Lora(), Optimization(max_steps=2, precision=wanted))
    job = Job("runs/r", tmp_path, "", tmp_path, tmp_path, tmp_path, spec, 1, tmp_path, tmp_path)
    assert bool(precision_warnings(job, device)) is warned


def test_bf16_that_the_library_may_not_use_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert usable_precision("auto", torch.device("cpu")) == "fp32"


def test_a_checkpoint_keeps_the_state_of_a_gpu(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    random_state, own = torch.get_rng_state(), {"random_state": torch.arange(16, dtype=torch.uint8)}
    own["scale"] = torch.tensor([2.0**14, 7.0], dtype=torch.float64)
    folder.save(Checkpoint(3, {"w": torch.ones(2)}, {"w/step": torch.ones(1)}, random_state, [1.0], own))
    found = folder.newest()
    assert found is not None
    assert found.accelerator.keys() == own.keys()
    assert all(torch.equal(found.accelerator[name], value) for name, value in own.items())
    folder.save(Checkpoint(4, {"w": torch.ones(2)}, {"w/step": torch.ones(1)}, random_state, [1.0]))
    on_processor = folder.newest()
    assert on_processor is not None
    assert on_processor.accelerator == {}


def test_the_scale_of_fp16_losses_is_restored() -> None:
    def scaler(scale: float) -> torch.amp.GradScaler:
        # On a processor, which has such a scaler too.
        return torch.amp.GradScaler("cpu", init_scale=scale)

    device = torch.device("cpu")
    before, after = scaler(512.0), scaler(65536.0)
    before.load_state_dict({**before.state_dict(), "_growth_tracker": 5})
    load_accelerator(device, after, accelerator_state(device, before))
    assert (after.get_scale(), after.state_dict()["_growth_tracker"]) == (512.0, 5)
