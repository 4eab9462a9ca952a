"""API keys: what is kept, who is let in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.keys.key import ApiKey, digest_key, generate_key, id_of, matches
from gateway.keys.ring import KeyRing, key_text
from gateway.keys.store import KeyStore, metadata
from services.kit.errors import NotFoundError, UnauthenticatedError, UnavailableError
from tests.conftest import OpenDatabase


@pytest.fixture
def store(open_service_database: OpenDatabase) -> KeyStore:
    return KeyStore(open_service_database("gateway"))


def test_a_key_has_256_bits_and_is_kept_as_a_digest() -> None:
    key_id, text = generate_key()
    assert id_of(text) == key_id
    assert len(text.rpartition("_")[2]) == 64
    key = ApiKey(key_id, "n", digest_key(text), datetime.now(UTC))
    assert text not in repr(key)
    assert matches(key, text)
    assert not matches(key, text[:-1] + ("0" if text[-1] != "0" else "1"))
    assert generate_key()[1] != text


@pytest.mark.parametrize("text", ["", "tm_", "tm_0_0", "sk-123", "tm_" + "g" * 12 + "_" + "0" * 64, "tm_ééé_é"])
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert id_of(text) is None


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "found"),
    [
        ("Bearer abc", None, "abc"),
        ("bearer  abc ", None, "abc"),
        ("abc", None, "abc"),
        (None, "abc", "abc"),
        ("Bearer abc", "def", "def"),
        (None, None, None),
        ("", "", None),
    ],
)
def test_where_a_key_stands(authorization: str | None, x_api_key: str | None, found: str | None) -> None:
    assert key_text(authorization, x_api_key) == found


def test_store_creates_lists_and_revokes(open_service_database: OpenDatabase) -> None:
    engine = open_service_database("gateway")
    store = KeyStore(engine)
    key, text = store.create("robot")
    assert [(k.key_id, k.name, k.revoke_time) for k in store.list()] == [(key.key_id, "robot", None)]
    revoked = store.revoke(key.key_id)
    assert revoked.revoke_time is not None
    assert store.revoke(key.key_id).revoke_time == revoked.revoke_time
    with pytest.raises(NotFoundError):
        store.revoke("0" * 12)
    with engine.connect() as connection:
        assert text not in str(connection.execute(metadata.tables["api_keys"].select()).all())


def test_the_first_key_is_written_once_and_readable_by_its_owner_only(store: KeyStore, tmp_path: Path) -> None:
    path = store.ensure_local_key(tmp_path)
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.ensure_local_key(tmp_path).read_text() == text
    path.unlink()
    assert store.ensure_local_key(tmp_path).read_text() != text
    assert len(store.list()) == 2


def test_a_revoked_local_key_is_not_replaced(store: KeyStore, tmp_path: Path) -> None:
    path = store.ensure_local_key(tmp_path)
    text = path.read_text()
    store.revoke(store.list()[0].key_id)
    assert store.ensure_local_key(tmp_path).read_text() == text


class Table:
    """Keys that count how often they are read."""

    def __init__(self) -> None:
        self.keys: list[ApiKey] = []
        self.readings = 0

    def add(self) -> str:
        key_id, text = generate_key()
        self.keys.append(ApiKey(key_id, "n", digest_key(text), datetime.now(UTC)))
        return text

    def load(self) -> Sequence[ApiKey]:
        self.readings += 1
        return list(self.keys)


async def test_ring_lets_known_keys_in_without_reading_again() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load)
    await ring.refresh()
    for _ in range(100):
        assert (await ring.check(text)).key_id == id_of(text)
    assert table.readings == 1


async def test_ring_finds_a_new_key_at_once() -> None:
    table = Table()
    ring = KeyRing(table.load, least_pause_s=0.01)
    await ring.refresh()
    text = table.add()
    assert (await ring.check(text)).key_id == id_of(text)


@pytest.mark.parametrize("text", [None, "", "nonsense", "tm_" + "0" * 12 + "_" + "0" * 64])
async def test_ring_refuses_with_what_to_do(text: str | None) -> None:
    ring = KeyRing(Table().load, least_pause_s=0.0)
    with pytest.raises(UnauthenticatedError, match="tidemill keys create"):
        await ring.check(text)


async def test_ring_refuses_a_key_whose_secret_is_another_ones() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load, least_pause_s=0.0)
    await ring.refresh()
    with pytest.raises(UnauthenticatedError):
        await ring.check(text[:16] + "0" * 64)


async def test_ring_forgets_revoked_keys() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load, least_pause_s=0.0)
    await ring.refresh()
    key = table.keys[0]
    table.keys[0] = ApiKey(key.key_id, key.name, key.digest, key.create_time, datetime.now(UTC))
    await ring.refresh()
    with pytest.raises(UnauthenticatedError):
        await ring.check(text)


async def test_keys_that_cannot_be_read_leave_the_known_ones_valid_and_ask_others_to_come_again() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load, least_pause_s=0.0)
    await ring.refresh()

    def broken() -> Sequence[ApiKey]:
        raise OSError("the database is away")

    ring._load = broken
    assert (await ring.check(text)).key_id == id_of(text)
    with pytest.raises(UnavailableError) as caught:
        await ring.check("tm_" + "0" * 12 + "_" + "0" * 64)
    assert caught.value.retry_after_s
