"""The client of Elasticsearch, and the translation of its errors into ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elasticsearch import ApiError, AsyncElasticsearch, OrjsonSerializer, TransportError

from services.kit.errors import UnavailableError

_RETRY_AFTER_S = 2.0


def open_client(url: str, user: str | None = None, password_file: Path | None = None) -> AsyncElasticsearch:
    """A client; create it inside the running event loop and close it at the end.

    Args:
        url: URL of Elasticsearch; contains name and password if `user` is not given.
        user: the user name, if the server requires one.
        password_file: file with the user's password; None if the server requires none.
    """
    # The client must not trace its calls, since this process receives the traces. It reads this when it is created.
    os.environ["OTEL_PYTHON_INSTRUMENTATION_ELASTICSEARCH_ENABLED"] = "false"
    return AsyncElasticsearch(
        url,
        basic_auth=_basic_auth(user, password_file) if "@" not in url else None,
        serializers={
            OrjsonSerializer.mimetype: OrjsonSerializer(),
            "application/vnd.elasticsearch+json": OrjsonSerializer(),
        },
        max_retries=0,  # the callers decide about retries
        retry_on_timeout=False,
        request_timeout=30.0,
    )


def _basic_auth(user: str | None, password_file: Path | None) -> tuple[str, str] | None:
    if user is None or password_file is None or not password_file.is_file():
        return None
    return user, password_file.read_text(encoding="utf-8").strip()


@contextmanager
def elasticsearch_errors(*passing: int) -> Iterator[None]:
    """Translates the client's errors to UnavailableError, except responses with the given status codes.

    This includes calls that Elasticsearch refuses, for example because of another template or a closed index. A retry
    only succeeds after someone has changed that, but until then senders keep their documents, so nothing is lost.
    """
    try:
        yield
    except ApiError as error:
        if error.status_code in passing:
            raise
        raise UnavailableError(
            f"Elasticsearch answers {error.status_code}: {_reason(error)}",
            reason="ELASTICSEARCH_UNAVAILABLE",
            metadata={"status": str(error.status_code)},
            retry_after_s=_RETRY_AFTER_S,
        ) from error
    except TransportError as error:
        raise UnavailableError(
            f"Elasticsearch does not answer: {type(error).__name__}: {error.message}",
            reason="ELASTICSEARCH_UNAVAILABLE",
            retry_after_s=_RETRY_AFTER_S,
        ) from error


def _reason(error: ApiError) -> str:
    """The reason in the response, if there is one, after the type of the exception."""
    details = error.body.get("error") if isinstance(error.body, dict) else None
    reason = details.get("reason") if isinstance(details, dict) else None
    return f"{error.error}: {reason}" if reason else error.error
