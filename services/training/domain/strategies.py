"""How the processes of a training share its work."""

from __future__ import annotations

from typing import Literal

Strategy = Literal["single", "ddp", "fsdp"]
"""`ddp`: each process has the whole model and its share of each batch. `fsdp`: each has its share of the model, too."""
STRATEGIES: tuple[Strategy, ...] = ("single", "ddp", "fsdp")
