"""Runs the builder, and what asks models for it, next to the server."""

from __future__ import annotations

from services.cleaning.app.builder import Builder
from services.cleaning.app.rewriting import Rewriting
from services.kit.loops import step_forever
from services.kit.threads import in_thread


async def run_builder(builder: Builder) -> None:
    """Runs the builder's steps until it is cancelled."""
    await step_forever(in_thread(builder.step), "building")


async def run_rewriting(rewriting: Rewriting) -> None:
    """Asks models until it is cancelled."""
    await step_forever(rewriting.step, "augmentation")
