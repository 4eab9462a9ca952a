"""Writes documents to Elasticsearch by its bulk interface, and deletes expired indices."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from elasticsearch import AsyncElasticsearch, NotFoundError

from services.kit.errors import UnavailableError
from services.telemetry.adapters.client import elasticsearch_errors
from services.telemetry.adapters.schema import VERSION, template, template_name
from services.telemetry.domain.days import Signal, day_of
from services.telemetry.domain.document import Document, Outcome, WriteStatus

logger = logging.getLogger(__name__)

_WRITTEN, _DUPLICATE = Outcome(WriteStatus.WRITTEN), Outcome(WriteStatus.DUPLICATE)
# Only the outcome of each document: the full response is five times as large.
_ANSWER = "items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason"


class ElasticsearchStore:
    """Implements `DocumentStore` and `DailyIndices`."""

    def __init__(self, client: AsyncElasticsearch) -> None:
        self._client = client
        self._prepared = False

    async def prepare(self) -> None:
        """Installs the index templates, unless newer versions are installed.

        Raises:
            UnavailableError: Elasticsearch does not answer, or refuses them.
        """
        for signal in Signal:
            name = template_name(signal)
            if await self._version(name) < VERSION:
                with elasticsearch_errors():
                    await self._client.indices.put_index_template(name=name, **template(signal))
                logger.info("put the index template %s, version %d", name, VERSION)
        self._prepared = True

    async def _version(self, name: str) -> int:
        try:
            with elasticsearch_errors(404):
                answer = await self._client.indices.get_index_template(name=name)
        except NotFoundError:
            return 0
        return int(answer["index_templates"][0]["index_template"].get("version", 0))

    async def write(self, documents: Sequence[Document]) -> list[Outcome]:
        """Writes one bulk of `create` actions: an existing document stays unchanged."""
        lines: list[bytes] = []
        for document in documents:
            lines.append(f'{{"create":{{"_index":"{document.index}","_id":"{document.id}"}}}}'.encode())
            lines.append(document.source)
        try:
            # After an outage it may be another, empty Elasticsearch, which must get the templates before any index.
            if not self._prepared:
                await self.prepare()
            with elasticsearch_errors():
                # The client sends bytes of JSON unchanged, though its types do not allow them.
                answer = await self._client.bulk(operations=lines, filter_path=_ANSWER)  # type: ignore[arg-type]
        except UnavailableError:
            self._prepared = False
            raise
        return [bulk_outcome(item["create"]) for item in answer["items"]]

    async def names(self) -> list[str]:
        """Names of all our indices."""
        with elasticsearch_errors():
            answer = await self._client.indices.get(
                index=[signal.pattern for signal in Signal], filter_path="*.aliases"
            )
        return [name for name in answer if day_of(name) is not None]

    async def drop(self, name: str) -> None:
        """Deletes an index."""
        with elasticsearch_errors():
            await self._client.indices.delete(index=name, ignore_unavailable=True)


def bulk_outcome(item: dict[str, Any]) -> Outcome:
    """The outcome in one item of a bulk's response."""
    status = item["status"]
    if status < 300:
        return _WRITTEN
    if status == 409:
        return _DUPLICATE
    error = item["error"]
    cause = error.get("caused_by", {}).get("reason", "")
    reason = f"{error['type']}: {error['reason']}" + (f" ({cause})" if cause else "")
    # 400 means that the document is invalid; other errors (overload, full disk, closed index) are the store's.
    return Outcome(WriteStatus.REFUSED if status == 400 else WriteStatus.BUSY, reason)
