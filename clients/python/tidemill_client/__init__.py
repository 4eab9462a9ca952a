"""Calls a Tidemill mesh: predict, generate, stream, feedback; blocking and asyncio."""

from tidemill_client.aio import AsyncClient
from tidemill_client.answers import Answer, Message, Piece, Prediction, Predictions, Sampling, TokenLogprob
from tidemill_client.client import Client
from tidemill_client.errors import TidemillError, Violation

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Message",
    "Piece",
    "Prediction",
    "Predictions",
    "Sampling",
    "TidemillError",
    "TokenLogprob",
    "Violation",
]
