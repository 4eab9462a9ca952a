# ruff: noqa: N802 - method names follow the contract
"""DeadLetterService over gRPC: map in, one call, map out. The use cases block, so they run in threads."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.ingest.v1 import dead_letter_pb2
from tidemill.ingest.v1 import dead_letter_service_pb2 as pb
from tidemill.ingest.v1 import dead_letter_service_pb2_grpc as grpc_stubs

from services.ingest.app.dead_letters import DeadLetters, Outcome
from services.ingest.domain.dead_letter import DeadLetter, LetterFilter, LetterState
from services.ingest.entrypoints.mapping import actor_of
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.grpc.messages import timestamp
from services.kit.grpc.paging import DEFAULT_SIZE, checked_token

_OFFSET = r"\d{1,18}"
_SHOWN_BYTES = 64 * 1024
_STATES = {
    LetterState.OPEN: dead_letter_pb2.DeadLetter.STATE_OPEN,
    LetterState.REPLAYED: dead_letter_pb2.DeadLetter.STATE_REPLAYED,
    LetterState.DROPPED: dead_letter_pb2.DeadLetter.STATE_DROPPED,
}
_BY_NUMBER = {number: state for state, number in _STATES.items()}


class DeadLetterServicer(grpc_stubs.DeadLetterServiceServicer):
    """Implements `tidemill.ingest.v1.DeadLetterService`."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters

    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, context: Any) -> pb.GetDeadLetterResponse:
        """Returns a letter with its content."""
        letter = await asyncio.to_thread(self._letters.get, request.name)
        return pb.GetDeadLetterResponse(dead_letter=_message(letter))

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        """Lists letters; the page token is the offset that the page ends before."""
        token = checked_token(request.page_token, _OFFSET)
        size = request.page_size or DEFAULT_SIZE
        before = int(token) if token else None
        page = await asyncio.to_thread(self._letters.page, _filter(request.filter), before, size)
        return pb.ListDeadLettersResponse(
            dead_letters=map(_message, page.letters),
            next_page_token="" if page.before is None else str(page.before),
            open_count=page.open_count,
        )

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Any
    ) -> pb.ReplayDeadLettersResponse:
        """Sends letters to their topics again."""
        outcomes = await asyncio.to_thread(self._letters.replay, list(request.names), actor_of(context))
        return pb.ReplayDeadLettersResponse(outcomes=map(_outcome, outcomes))

    async def DropDeadLetters(self, request: pb.DropDeadLettersRequest, context: Any) -> pb.DropDeadLettersResponse:
        """Marks letters as not needed."""
        outcomes = await asyncio.to_thread(self._letters.drop, list(request.names), actor_of(context))
        return pb.DropDeadLettersResponse(outcomes=map(_outcome, outcomes))


def _filter(message: pb.DeadLetterFilter) -> LetterFilter:
    return LetterFilter(
        message.reason,
        message.service,
        message.topic,
        message.import_name,
        _moment(message.since, "filter.since") if message.HasField("since") else None,
        _moment(message.until, "filter.until") if message.HasField("until") else None,
        _BY_NUMBER.get(message.state),
    )


def _moment(message: Timestamp, field: str) -> datetime:
    """A time that Kafka understands.

    Raises:
        InvalidArgumentError: it is outside the years 1970 to 9999.
    """
    try:
        moment = message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.year < 1970:
        what = "must be between the years 1970 and 9999"
        raise InvalidArgumentError(f"{field} {what}.", reason="INVALID_TIME", violations=[FieldViolation(field, what)])
    return moment


def _outcome(outcome: Outcome) -> pb.DeadLetterOutcome:
    refused = outcome.refused
    return pb.DeadLetterOutcome(
        dead_letter=_message(outcome.letter),
        refused_reason=refused.reason if refused else "",
        refused_message=refused.message if refused else "",
    )


def _message(letter: DeadLetter) -> dead_letter_pb2.DeadLetter:
    message = dead_letter_pb2.DeadLetter(
        name=letter.name,
        state=_STATES[letter.state],
        refuse_time=timestamp(letter.refuse_time),
        reason=letter.reason,
        message=letter.message,
        service=letter.service,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.source_offset,
        import_name=letter.import_name,
        location=letter.location,
        size_bytes=letter.size,
        truncated=letter.truncated,
        key=letter.key or b"",
        content=letter.content[:_SHOWN_BYTES],
        headers=letter.headers,
    )
    if letter.mark is not None:
        message.actor = letter.mark.actor
        message.decide_time.CopyFrom(timestamp(letter.mark.decide_time))
    return message
