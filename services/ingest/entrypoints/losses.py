"""Receives from cleaning which raw records the bus deleted unread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from tidemill.cleaning.v1.cleaning_events_pb2 import RecordsLost

from services.kit.bus.cloudevents import decode
from services.kit.bus.port import Delivery


class LossHandler:
    """Handles deliveries of `tidemill.cleaning.events`; the other events are for others."""

    def __init__(self, note_loss: Callable[[datetime], None]) -> None:
        self._note_loss = note_loss

    def handle(self, batch: Sequence[Delivery]) -> None:
        """Keeps when records were lost; idempotent."""
        for delivery in batch:
            if delivery.event_type == RecordsLost.DESCRIPTOR.full_name:
                self._note_loss(decode(delivery, RecordsLost).find_time.ToDatetime(UTC))
