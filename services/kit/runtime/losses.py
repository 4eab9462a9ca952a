"""What a service does when its consumer finds that the bus has deleted unread messages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from services.kit.bus.losses import FILE_NAME, note_loss
from services.kit.bus.metrics import LossMetrics
from services.kit.bus.port import LostMessages
from services.kit.clock import Clock

logger = logging.getLogger(__name__)


def loss_reporter(metrics: LossMetrics, state: Path, clock: Clock, group: str) -> Callable[[LostMessages], None]:
    """For a consumer's `on_lost`: counts what the group lost and notes it in the state folder."""
    count = metrics.of_group(group)

    def report(lost: LostMessages) -> None:
        try:
            note_loss(state, group, lost, clock.now())
        except OSError as error:
            # The log and the metric have it all the same, and the consumer must continue.
            logger.warning("a loss could not be noted in %s: %s", state / FILE_NAME, error)
        count(lost)

    return report
