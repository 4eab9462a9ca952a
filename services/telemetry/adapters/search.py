"""Searches Elasticsearch."""

from __future__ import annotations

import re
from typing import Any

from elasticsearch import AsyncElasticsearch, BadRequestError

from services.kit.bus.topics import INBOUND
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.telemetry.adapters.client import elasticsearch_errors
from services.telemetry.adapters.schema import CONTAINERS, FIELDS, TIE_BREAKERS, WORD_FIELDS
from services.telemetry.app.ports import Hit, Search, SearchResult
from services.telemetry.domain.days import timestamp
from services.telemetry.domain.query import qualify_fields

_TIMEOUT_S = 20.0
# Lucene's parser begins its messages with the whole query.
_SYNTAX = re.compile(r"Cannot parse '.*?': (?=[A-Z])", re.DOTALL)
_PLACE = re.compile(r" at line \d+, column \d+\.?|\(in lexical state \d+\)")
_ENDS = {
    'Encountered "<EOF>"': "it ends too early",
    "Lexical error  Encountered: <EOF> after prefix": "it does not close what begins with",
}
# Encountered " <OR> "OR ""
_UNEXPECTED = re.compile(r'Encountered " .*? "(.*?) *""')


class ElasticsearchSearch:
    """Implements `EventSearch`."""

    def __init__(self, client: AsyncElasticsearch) -> None:
        self._client = client.options(request_timeout=_TIMEOUT_S)

    async def find(self, search: Search) -> SearchResult:
        """Searches."""
        order = "desc" if search.newest_first else "asc"
        try:
            with elasticsearch_errors(*([400] if search.query else [])):
                answer = await self._client.search(
                    index=search.signal.pattern,
                    query=_query(search),
                    sort=[
                        {"@timestamp": {"order": order, "format": "strict_date_optional_time_nanos"}},
                        {TIE_BREAKERS[search.signal]: {"order": order, "missing": "_last"}},
                    ],
                    size=search.size,
                    search_after=list(search.after) or None,
                    track_total_hits=True,
                    # A partial result must not look complete.
                    allow_partial_search_results=False,
                )
        except BadRequestError as error:
            why = _complaint(error.body)
            raise InvalidArgumentError(
                f"The query cannot be understood: {why}",
                reason="INVALID_QUERY",
                violations=[FieldViolation("query", why)],
            ) from error
        hits = answer["hits"]
        return SearchResult([Hit(hit["_source"], hit["sort"]) for hit in hits["hits"]], hits["total"]["value"])


# The span at the gateway may have a parent that is not stored here: a caller's own span.
_ENTRIES: list[dict[str, Any]] = [
    {"bool": {"must_not": [{"exists": {"field": "parent.id"}}]}},
    {"bool": {"filter": [{"term": {"service.name": "gateway"}}, {"term": {"span.kind": "server"}}]}},
    {"term": {"span.name": f"process {INBOUND.name}"}},
]


def _query(search: Search) -> dict[str, Any]:
    must: list[dict[str, Any]] = []
    if search.query.strip():
        must.append(
            {
                "query_string": {
                    "query": qualify_fields(search.query, FIELDS[search.signal], CONTAINERS[search.signal]),
                    "fields": list(WORD_FIELDS[search.signal]),
                    # All words must match, each in any of the fields.
                    "default_operator": "AND",
                    "type": "cross_fields",
                }
            }
        )
    if search.trace_id:
        must.append({"term": {"trace.id": search.trace_id}})
    if search.entries_only:
        must.append({"bool": {"should": _ENTRIES, "minimum_should_match": 1}})
    bounds = {"gte": search.start_ns, "lt": search.end_ns}
    limits = {key: timestamp(value) for key, value in bounds.items() if value is not None}
    if limits:
        must.append({"range": {"@timestamp": limits}})
    return {"bool": {"filter": must}}


def _complaint(body: Any) -> str:
    """Elasticsearch's error in one line, without positions, since the query was changed before it was sent."""
    reason = body["error"].get("failed_shards", [{}])[0].get("reason") or body["error"]
    text = str(reason.get("caused_by", reason).get("reason", "")) or "no reason was given"
    if not _SYNTAX.match(text):
        return text.splitlines()[0]
    line = _PLACE.sub("", _SYNTAX.sub("", text).splitlines()[0]).strip().removesuffix(".")
    for theirs, ours in _ENDS.items():
        line = line.replace(theirs, ours)
    line = _UNEXPECTED.sub(r"\1 is not expected there", line)
    return f'{line} (text with one of / : ( ) [ ] {{ }} in it must be in "quotes")'
