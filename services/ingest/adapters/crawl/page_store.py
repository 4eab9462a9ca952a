"""The frontier of crawls and what each address answered last, in the service's database.

A crawl is an import: its name marks the addresses that it listed and those that it is done with. So a process that goes
on with an import finds both, and fetches nothing again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping

from services.ingest.adapters.tables import crawled_pages
from services.kit.ids import sha256_hex
from services.kit.storage.database import read_only, translate_database_errors

_ROWS = crawled_pages.c
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Crawl:
    """One crawl: the origin that it reads, and its import."""

    origin: str
    import_name: str


@dataclass(frozen=True, slots=True)
class Target:
    """An address to fetch: links from a first page to it, and redirects that led to it."""

    address: str
    depth: int = 0
    hops: int = 0
    is_sitemap: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What an address answered last: `content` is JSON, empty where there is none; `refusal` why it gives no record."""

    etag: str = ""
    last_modified: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    refusal: Mapping[str, Any] | None = None


class SqlPageStore:
    """Keeps crawls; every method is one transaction. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def add(self, crawl: Crawl, targets: Sequence[Target], most: int) -> bool:
        """Lists addresses that the crawl has not listed yet; False if there were more than `most` of them."""
        with translate_database_errors(), self._engine.begin() as connection:
            return _add(connection, crawl, targets, most)

    def next(self, crawl: Crawl) -> tuple[Target, Answer] | None:
        """The address to fetch next, the nearest ones first, and what it answered an earlier crawl."""
        query = (
            select(crawled_pages)
            .where(*_listed(crawl), _ROWS.done_by != crawl.import_name)
            .order_by(_ROWS.is_sitemap.desc(), _ROWS.depth, _ROWS.number)
            .limit(1)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else (_target(row), _answer(row))

    def done(self, crawl: Crawl) -> Iterator[tuple[Target, Answer]]:
        """What the crawl is done with, in the order in which it was listed."""
        after = -1
        while True:
            query = (
                select(crawled_pages)
                .where(*_listed(crawl), _ROWS.done_by == crawl.import_name, _ROWS.number > after)
                .order_by(_ROWS.number)
                .limit(_AT_ONCE)
            )
            with translate_database_errors(), self._reads.connect() as connection:
                rows = connection.execute(query).mappings().all()
            if not rows:
                return
            for row in rows:
                yield _target(row), _answer(row)
            after = rows[-1]["number"]

    def settle(self, crawl: Crawl, target: Target, answer: Answer, found: Sequence[Target], most: int) -> bool:
        """Keeps an answer, and lists what was found in it; returns what `add` returns."""
        values = {
            "done_by": crawl.import_name,
            "etag": answer.etag,
            "last_modified": answer.last_modified,
            "content": zlib.compress(json.dumps(answer.content).encode()) if answer.content else b"",
            "refusal": answer.refusal,
        }
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(
                update(crawled_pages)
                .where(_ROWS.origin == crawl.origin, _ROWS.address_digest == sha256_hex(target.address))
                .values(values)
            )
            return _add(connection, crawl, found, most)

    def finish(self, crawl: Crawl) -> None:
        """Forgets what the origin's earlier crawls listed and this one did not."""
        gone = delete(crawled_pages).where(_ROWS.origin == crawl.origin, _ROWS.listed_by != crawl.import_name)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(gone)


def _listed(crawl: Crawl) -> tuple[Any, ...]:
    return _ROWS.origin == crawl.origin, _ROWS.listed_by == crawl.import_name


def _add(connection: Connection, crawl: Crawl, targets: Sequence[Target], most: int) -> bool:
    digests = {sha256_hex(target.address): target for target in targets}
    known: dict[str, str] = {}
    keys = list(digests)
    for begin in range(0, len(keys), _AT_ONCE):
        part = keys[begin : begin + _AT_ONCE]
        query = select(_ROWS.address_digest, _ROWS.listed_by).where(
            _ROWS.origin == crawl.origin, _ROWS.address_digest.in_(part)
        )
        known.update((row[0], row[1]) for row in connection.execute(query))
    fresh = [digest for digest in keys if known.get(digest) != crawl.import_name]
    if not fresh:
        return True
    # Numbers go up from 0 without gaps, so that the greatest one also says how many there are.
    begin = connection.execute(select(func.coalesce(func.max(_ROWS.number) + 1, 0)).where(*_listed(crawl))).scalar_one()
    for number, digest in enumerate(fresh[: max(0, most - begin)], begin):
        target = digests[digest]
        row = {
            "listed_by": crawl.import_name,
            "number": number,
            "depth": target.depth,
            "hops": target.hops,
            "is_sitemap": target.is_sitemap,
            "refusal": None,
        }
        if digest in known:
            mine = (_ROWS.origin == crawl.origin, _ROWS.address_digest == digest)
            connection.execute(update(crawled_pages).where(*mine).values(row))
            continue
        row |= {"origin": crawl.origin, "address_digest": digest, "address": target.address, "done_by": ""}
        connection.execute(insert(crawled_pages).values({**row, "etag": "", "last_modified": "", "content": b""}))
    return bool(len(fresh) <= most - begin)


def _target(row: RowMapping) -> Target:
    return Target(row["address"], row["depth"], row["hops"], row["is_sitemap"])


def _answer(row: RowMapping) -> Answer:
    content = json.loads(zlib.decompress(row["content"])) if row["content"] else {}
    return Answer(row["etag"], row["last_modified"], content, row["refusal"])
