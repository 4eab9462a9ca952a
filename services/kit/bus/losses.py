"""Messages that the bus deleted before their readers had them, noted in the mesh's state folder.

`tidemill status` and `tidemill doctor` read the notes of the services on their machine; the metric
`bus_lost_messages` has those of all machines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from services.kit.bus.port import LostMessages
from services.kit.bus.topics import ANSWERS_CAPTURED, FEEDBACK_INBOUND, INBOUND, PREDICTIONS, RECORDS_RAW

FILE_NAME = "lost-messages.jsonl"

_REMEDIES = {
    RECORDS_RAW.name: "Run the pipelines again, which pulls their sources again, and have whoever pushed records or "
    "sent events in that time send them again.",
    INBOUND.name: "Have the producers of that time send their events again.",
    FEEDBACK_INBOUND.name: "Have the producers of that time send their feedback again.",
    ANSWERS_CAPTURED.name: "Nothing is learnt from feedback on these answers; nothing else is missing.",
    PREDICTIONS.name: "Feedback on these answers is not counted for any model version; nothing else is missing.",
}


@dataclass(frozen=True, slots=True)
class NotedLoss:
    """What a group of readers lost of a topic."""

    topic: str
    group: str
    messages: int
    """Upper bound: some offsets may not have held a message to read."""
    found: datetime
    """When the last of it was found."""

    @property
    def remedy(self) -> str:
        """What a person can do."""
        return _REMEDIES.get(self.topic, "Have their producers send them again.")

    def __str__(self) -> str:
        when = self.found.astimezone().isoformat(" ", "seconds")
        return (
            f"Up to {self.messages} messages of {self.topic} were deleted before {self.group} had read them ({when})."
        )


def note_loss(state: Path, group: str, lost: LostMessages, moment: datetime) -> None:
    """Notes a loss; a repeat is counted once.

    Raises:
        OSError: the file cannot be written.
    """
    entry = {
        "group": group,
        "topic": lost.topic,
        "partition": lost.partition,
        "first_offset": lost.first_offset,
        "next_offset": lost.next_offset,
        "found": moment.isoformat(),
    }
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One write of a short line: services share the file.
    file = os.open(state / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(file)


def noted_losses(state: Path) -> Sequence[NotedLoss]:
    """What is noted, by topic and group.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path = state / FILE_NAME
    if not path.exists():
        return []
    gaps: dict[tuple[str, str, int, int], tuple[int, datetime]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            key = (entry["topic"], entry["group"], entry["partition"], entry["next_offset"])
            gaps[key] = (entry["next_offset"] - entry["first_offset"], datetime.fromisoformat(entry["found"]))
        except (ValueError, KeyError, TypeError):
            # A line that a full disk cut off; it was logged when it was written.
            continue
    found: dict[tuple[str, str], NotedLoss] = {}
    for (topic, group, *_), (messages, moment) in gaps.items():
        before = found.get((topic, group), NotedLoss(topic, group, 0, moment))
        found[topic, group] = NotedLoss(topic, group, before.messages + messages, max(before.found, moment))
    return [found[key] for key in sorted(found)]


def forget_losses(state: Path) -> None:
    """Clears the notes: an operator has seen to them."""
    (state / FILE_NAME).unlink(missing_ok=True)
