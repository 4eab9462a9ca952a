"""Four ways into one data set at once: a web site, an API in pages, a rotated log, and events of another team."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer

from services.kit.bus.topics import INBOUND
from tests.e2e.conftest import Mesh
from tests.faults.reconciler import compare, digest
from tests.site import Site, page
from tests.waiting import wait_until

pytestmark = pytest.mark.real

FILE = """\
name: four-ways
sources:
  - source: docs-site
    web_pages: {uri: "SITE/", delay_s: 0.01}
    collect: {every_minutes: 0.1}
  - source: shop-api
    rest_api: {uri: "SITE/items", items_field: items, next_field: next, id_field: id}
    collect: {every_minutes: 0.1}
  - source: shop-log
    log_files: {uri: "FOLDER/app.log*", id_field: request}
    collect: {every_minutes: 0.1}
  - source: partner
    pushed: {}
dataset:
  name: datasets/four-ways
  operators:
    - fix_unicode
    - length_filter: {min_chars: 8}
    - exact_dedup
  holdout: {fraction: 0.2}
"""
PULLED = ("docs-site", "shop-api", "shop-log")


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


class World:
    """What lies outside the mesh, and what must be in the data set for it: text by record id, by source."""

    def __init__(self, mesh: Mesh, site: Site, folder: Path) -> None:
        self._site, self._folder = site, folder
        self._producer = KafkaProducer(bootstrap_servers=mesh.stack.kafka_bootstrap)
        self.texts: dict[str, dict[str, str]] = {"shop-api": {}, "shop-log": {}, "partner": {}}
        self.pages: set[str] = set()

    def set_pages(self, *names: str) -> None:
        self._site.put("/", page("home", *names))
        for name in names:
            self._site.put(name, page(name))
        self.pages = {self._site.url(path) for path in ("/", *names)}

    def set_items(self, items: Mapping[str, str]) -> None:
        """In pages of ten, each with the address of the next one."""
        all_items = [{"id": key, "text": text} for key, text in items.items()]
        count = max(1, -(-len(all_items) // 10))
        for number in range(count):
            following = f"/items?page={number + 1}" if number + 1 < count else ""
            body = {"items": all_items[10 * number : 10 * number + 10], "next": following}
            path = f"/items?page={number}" if number else "/items"
            self._site.put(path, json.dumps(body).encode(), Content_Type="application/json")
        self.texts["shop-api"] = dict(items)

    def log(self, first: int, count: int, name: str = "app.log") -> None:
        lines = {f"request-{n}": f"request {n} was answered in {n} ms" for n in range(first, first + count)}
        with (self._folder / name).open("a", encoding="utf-8") as file:
            for key, text in lines.items():
                file.write(json.dumps({"request": key, "message": text}) + "\n")
        self.texts["shop-log"] |= lines

    def rotate(self) -> None:
        (self._folder / "app.log").rename(self._folder / "app.log.1")

    def push(self, texts: Mapping[str, str]) -> None:
        """Events with an acknowledgement for each, as another team's program sends them."""
        sent = []
        for key, text in texts.items():
            attributes = {"id": key, "source": "/partner", "type": "com.example.note", "specversion": "1.0"}
            headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
            headers.append(("content-type", b"application/json"))
            value = json.dumps({"source": "partner", "record_id": key, "text": text}).encode()
            sent.append(self._producer.send(INBOUND.name, key=key.encode(), value=value, headers=headers))
        for each in sent:
            each.get(30)
        self.texts["partner"] |= texts

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def world(mesh: Mesh, site: Site) -> Iterator[World]:
    folder = mesh.scratch / "shop-logs"
    folder.mkdir()
    made = World(mesh, site, folder)
    yield made
    made.close()


def collected(mesh: Mesh, source: str) -> bool:
    shown = mesh.json("sources", "show", source)
    return bool(shown.get("last_import", {}).get("state") == "STATE_SUCCEEDED")


def rows(uri: str, part: str, *columns: str) -> list[tuple[str, ...]]:
    table = pq.read_table(f"{uri.removeprefix('file://')}/{part}.parquet", columns=list(columns))
    return [tuple(row[column] for column in columns) for row in table.to_pylist()]


def stored(uri: str) -> dict[str, list[tuple[str, str]]]:
    """Id and text of every record that a version holds, for training or held out, by source."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in ("train", "holdout"):
        for source, record_id, text in rows(uri, part, "source", "record_id", "text"):
            found.setdefault(source, []).append((record_id, text))
    return found


def test_what_comes_by_four_ways_through_a_kill_is_there_once(mesh: Mesh, world: World, site: Site) -> None:
    file = mesh.scratch / "four-ways.yaml"
    file.write_text(FILE.replace("SITE", site.url("").rstrip("/")).replace("FOLDER", str(mesh.scratch / "shop-logs")))
    world.set_pages("/a", "/b", "/c")
    world.set_items({f"item-{n}": f"The item number {n} of the shop is sold out" for n in range(35)})
    world.log(0, 200)
    world.push({f"note-{n}": f"The partner's note number {n} about a delivery" for n in range(60)})
    mesh.tidemill("sources", "put", str(file), *(word for source in PULLED for word in ("--source", source)))
    for source in PULLED:
        wait_until(partial(collected, mesh, source), f"the first collection of {source}")

    # While they are collected again by themselves, everything changes and the service dies.
    world.set_pages("/a", "/c", "/d")
    world.log(200, 100)
    world.rotate()
    world.log(300, 100)
    mesh.kill("ingest")
    items = {f"item-{n}": f"The item number {n} of the shop is sold out" for n in range(5, 42)}
    world.set_items({**items, "item-7": "The item number 7 is here again", "item-8": "short"})
    world.push({f"note-{n}": f"The partner's note number {n} about a delivery" for n in range(60, 100)})
    world.push({"note-3": "The partner's note number 3, corrected"})
    wait_until(lambda: mesh.now().children["ingest"].healthy, "ingest")

    version = mesh.json("dataset", "build", str(file))
    # The build has declared it.
    assert "others push it" in mesh.tidemill("sources", "show", "partner").stdout
    assert version["state"] == "STATE_READY", version
    assert rows(version["uri"], "rejected", "source", "record_id", "reason") == [("shop-api", "item-8", "too_short")]
    del world.texts["shop-api"]["item-8"]
    found = stored(version["uri"])
    for source, texts in world.texts.items():
        wanted = {key: digest(text) for key, text in texts.items()}
        finding = compare(source, wanted, [(key, digest(text)) for key, text in found[source]])
        assert finding.sound, str(finding)
    assert sorted(key for key, _ in found["docs-site"]) == sorted(world.pages)
    assert all("The miller opened the gate" in text for _, text in found["docs-site"])
    assert set(found) == {*world.texts, "docs-site"}
    for source in (*PULLED, "partner"):
        mesh.tidemill("sources", "delete", source)
