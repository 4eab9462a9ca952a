"""Items of a JSON API to records, and where its next page is; no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from services.ingest.domain.record import RawRecord, RecordRefusedError
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.members import MemberFormat, member_at
from services.kit.json_text import read_json


@dataclass(frozen=True)
class RestApi(MemberFormat[Any]):
    """A JSON API with pages; a piece is an item."""

    items_field: str = ""
    next_field: str = ""
    cursor_parameter: str = ""
    offset_parameter: str = ""
    since_parameter: str = ""
    since_field: str = ""
    secret: str = ""
    field = "rest_api"
    unit = "item"

    @property
    def incremental(self) -> bool:
        """See `SourceKind`."""
        return bool(self.since_parameter)

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        if not self.uri.lower().startswith(("http:", "https:")):
            yield "uri", "must be a URL of http: or https:."
        if self.cursor_parameter and not self.next_field:
            yield "next_field", "is needed beside cursor_parameter: it names the member of a page with the cursor."
        if self.offset_parameter and self.next_field:
            yield "offset_parameter", "cannot be combined with next_field; give one of the two."
        if bool(self.since_parameter) != bool(self.since_field):
            yield "since_field", "and since_parameter need each other; give both or none."
        if self.since_parameter and not self.id_field:
            yield "id_field", "is needed beside since_parameter: the same item may come again, changed."

    def first(self, since: Any) -> str:
        """URL of the first page of an import."""
        url = self.uri.partition("#")[0]
        return _with(url, self.since_parameter, since) if self.since_parameter and since is not None else url

    def page(self, content: bytes) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """A page, empty if it is a list, and its items.

        Raises:
            BadContentError: it is not JSON, or has no list of items.
        """
        try:
            value = read_json(content)
        except ValueError as error:
            raise BadContentError("INVALID_JSON", f"the page is not valid JSON: {error}") from error
        items = value
        if self.items_field:
            items = member_at(value, self.items_field) if isinstance(value, Mapping) else None
        if not isinstance(items, list):
            what = f"its member {self.items_field!r}" if self.items_field else "it"
            raise BadContentError("NO_ITEMS", f"{what} is not a list; correct items_field")
        return value if isinstance(value, Mapping) else {}, items

    def following(self, url: str, link: str, page: Mapping[str, Any], items: Sequence[Any], read: int) -> str:
        """URL of the next page; empty at the end.

        Args:
            url: of this page.
            link: where its `Link` header with rel="next" leads; empty without one.
            page: this page.
            items: of this page.
            read: items of all pages so far.
        """
        if self.offset_parameter:
            return _with(url, self.offset_parameter, read) if items else ""
        if not self.next_field:
            return urljoin(url, link) if link else ""
        found = member_at(page, self.next_field)
        if found is None or found == "" or found is False:
            return ""
        if not isinstance(found, str | int):
            raise BadContentError("NO_NEXT_PAGE", f"{self.next_field!r} is neither text nor a number")
        return _with(url, self.cursor_parameter, found) if self.cursor_parameter else urljoin(url, str(found))

    def split(self, file: ReadFile) -> Iterator[tuple[int, Any]]:
        """The items of one page."""
        yield from enumerate(self.page(b"".join(file.chunks))[1], 1)

    def record(self, source: str, file: ReadFile, piece: Any) -> RawRecord:
        """See `FileFormat`."""
        if not isinstance(piece, Mapping):
            raise RecordRefusedError("The item is not a JSON object.", reason="NOT_AN_OBJECT")
        return self.record_of_members(source, piece)

    def content(self, piece: Any) -> bytes:
        """See `FileFormat`."""
        return json.dumps(piece, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")

    def later(self, since: Any, item: Any) -> Any:
        """The greater of a value of `since_field` and that of an item.

        Raises:
            BadContentError: the item has none, or one that cannot be compared.
        """
        value = member_at(item, self.since_field) if isinstance(item, Mapping) else None
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise BadContentError("NO_SINCE", f"{self.since_field!r} of an item is neither text nor a number")
        if since is not None and isinstance(value, str) != isinstance(since, str):
            raise BadContentError("NO_SINCE", f"{self.since_field!r} is text of one item and a number of another")
        return value if since is None else max(since, value)


FORMAT = RestApi


def _with(url: str, parameter: str, value: Any) -> str:
    """The URL with a parameter that has this value, in place of what it had."""
    parts = urlsplit(url)
    kept = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != parameter]
    return urlunsplit(parts._replace(query=urlencode([*kept, (parameter, str(value))])))
