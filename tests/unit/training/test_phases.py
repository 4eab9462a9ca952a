"""What both tasks' workers share."""

from __future__ import annotations

import pytest
from torch import nn

from services.kit.errors import InvalidArgumentError
from services.training.domain.recipe import LoraMethod
from services.training.worker.phases import adapted


def test_layers_that_the_model_lacks_are_refused_with_their_field() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec\.lora\.target_modules: .*no_such"):
        adapted(nn.Sequential(nn.Linear(4, 4)), LoraMethod(target_modules=("no_such",)))
