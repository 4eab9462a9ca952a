"""Calls a Tidemill mesh: predict, embed, generate, stream, feedback; blocking and asyncio."""

from tidemill_client.aio import AsyncClient
from tidemill_client.answers import (
    Answer,
    Embedding,
    Embeddings,
    Message,
    Piece,
    Prediction,
    Predictions,
    Sampling,
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
    "Message",
    "Piece",
    "Prediction",
    "Predictions",
    "Sampling",
    "TidemillError",
    "TokenLogprob",
    "Violation",
]
