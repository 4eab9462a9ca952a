"""Where answers are kept follows from the settings."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from gateway.plane import cached
from gateway.settings import GatewaySettings
from services.serving.adapters.answer_memory import AnswerMemory
from services.serving.adapters.answer_valkey import ValkeyAnswers
from services.serving.app.answer_cache import CachingServer


def _settings(**values: Any) -> GatewaySettings:
    return GatewaySettings(**values)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"answer_cache_bytes": 1000}, AnswerMemory),
        ({"answer_cache_url": "valkey://:secret@cache:6379/2"}, ValkeyAnswers),
        ({"answer_cache_url": "rediss://cache"}, ValkeyAnswers),
    ],
)
async def test_a_cache_where_one_is_wanted(settings: dict[str, Any], kind: type) -> None:
    triton: Any = object()
    server, close = cached(triton, _settings(**settings), CollectorRegistry())
    assert isinstance(server, CachingServer)
    assert isinstance(server.store, kind)
    await close()


async def test_no_cache_where_none_is_wanted() -> None:
    triton: Any = object()
    server, close = cached(triton, _settings(), CollectorRegistry())
    assert server is triton
    await close()


@pytest.mark.parametrize("url", ["http://:secret@cache", "valkey://", "cache:6379", "unix:///tmp/x", ""])
def test_another_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError, match="must begin with valkey://") as found:
        _settings(answer_cache_url=url)
    assert "secret" not in str(found.value.errors(include_input=False))


def test_two_caches_are_refused() -> None:
    with pytest.raises(ValidationError, match="set one of TIDEMILL_ANSWER_CACHE_URL"):
        _settings(answer_cache_url="valkey://cache", answer_cache_bytes=1)
