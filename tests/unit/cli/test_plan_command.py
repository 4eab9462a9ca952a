"""`tidemill plan`: which files it reads, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from tidemill.training.v1 import training_service_pb2 as pb

from gateway.cli import plan_command
from gateway.cli.pipeline_file import load_training
from services.kit.errors import InvalidArgumentError

_TRAINING = """
base_model: smollm2-135m-instruct
model_name: headlines
generation: {prompt_template: "{text}", target_field: headline, max_input_tokens: 128, max_target_tokens: 24}
lora: {r: 8, alpha: 16}
optimization: {max_steps: 80, batch_size: 4, learning_rate: 0.001}
compression: {variants: [fp32]}
"""


def test_a_recipe_is_the_training_section_of_a_pipeline(tmp_path: Path) -> None:
    training = tmp_path / "training.yaml"
    training.write_text(_TRAINING, encoding="utf-8")
    assert load_training(training).spec.lora.r == 8
    pipeline = Path(__file__).parents[3] / "pipelines" / "headlines.yaml"
    assert load_training(pipeline).spec.base_model == "smollm2-135m-instruct"


def test_what_is_wrong_in_a_recipe_is_named_with_its_line(tmp_path: Path) -> None:
    training = tmp_path / "training.yaml"
    training.write_text(_TRAINING.replace("batch_size: 4", "batch_size: -4"), encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=r"training\.yaml:6:\d+: optimization\.batch_size"):
        load_training(training)


def test_a_row_for_each_strategy_and_size() -> None:
    found = pb.PlanTrainingResponse(
        strategies=[
            pb.StrategyPlan(strategy="fsdp", devices=8, weights_bytes=2 * 10**9, peak_bytes=5 * 10**9, fits=True)
        ],
        sizes=[pb.SizePlan(name="70B", parameters=69 * 10**9, devices=16), pb.SizePlan(name="405B", parameters=10**9)],
    )  # fmt: skip
    console = Console(width=120)
    with console.capture() as shown:
        console.print(plan_command.strategies(found))
        console.print(plan_command.sizes(found))
    text = shown.get()
    assert all(word in text for word in ("fsdp", "2.00 GB", "5.00 GB", "yes", "70B", "16", "none is enough")), text
