"""Calls a Tidemill mesh: predict, embed, generate, stream, feedback; blocking and asyncio."""

from tidemill_client.aio import AsyncClient
from tidemill_client.answers import (
    Answer,
    Embedding,
    Embeddings,
    Judgement,
    Message,
    Piece,
    Prediction,
    Predictions,
    Sampling,
    Signal,
    Span,
    TokenLogprob,
)
from tidemill_client.client import Client
from tidemill_client.errors import TidemillError, Violation

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Embedding",
    "Embeddings",
    "Judgement",
    "Message",
    "Piece",
    "Prediction",
    "Predictions",
    "Sampling",
    "Signal",
    "Span",
    "TidemillError",
    "TokenLogprob",
    "Violation",
]
