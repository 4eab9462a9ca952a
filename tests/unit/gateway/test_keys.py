"""API keys: what is kept, who is let in."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.keys.key import ApiKey, KeyLimits, Role, digest_key, generate_key, id_of, matches
from gateway.keys.ring import KeyRing, key_text
from gateway.keys.store import KeyStore, metadata
from services.kit.errors import FailedPreconditionError, NotFoundError, UnauthenticatedError, UnavailableError
from services.kit.storage.database import open_database
from tests.conftest import OpenDatabase, migrations
from tests.waiting import eventually


class FixedClock:
    """Stands still until it is set."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()


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
def test_a_text_that_is_not_a_key_has_no_id(text: str) -> None:
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


def test_a_key_keeps_what_it_was_made_with(store: KeyStore) -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    limits = KeyLimits(2.5, 3)
    made, _ = store.create("robot", {Role.PREDICT}, expire_time=end, tenant="acme", limits=limits)
    (kept,) = store.list()
    assert kept == made
    assert (set(kept.roles), kept.expire_time, kept.tenant, kept.limits) == ({Role.PREDICT}, end, "acme", limits)
    assert kept.allows({Role.PREDICT, Role.READ})
    assert not kept.allows({Role.OPERATE})
    assert store.create("usual")[0].roles == {Role.READ, Role.PREDICT, Role.INGEST}


def test_the_first_key_may_do_everything(store: KeyStore, tmp_path: Path) -> None:
    store.ensure_local_key(tmp_path)
    assert all(store.list()[0].allows({role}) for role in Role)


def test_rotation_leaves_the_old_key_for_the_overlap(open_service_database: OpenDatabase) -> None:
    clock = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
    store = KeyStore(open_service_database("gateway"), clock)
    old, _ = store.create("robot", {Role.READ}, expire_time=clock.now() + timedelta(days=30), tenant="acme")
    clock.moment += timedelta(days=20)
    new, text = store.rotate(old.key_id, timedelta(hours=1))
    assert (new.name, set(new.roles), new.tenant) == ("robot", {Role.READ}, "acme")
    assert new.expire_time == clock.now() + timedelta(days=30)
    ended = store.get(old.key_id)
    assert ended.expire_time == clock.now() + timedelta(hours=1)
    assert not ended.expired(clock.now())
    # A second rotation does not give the old key more time.
    store.rotate(old.key_id, timedelta(days=5))
    assert store.get(old.key_id).expire_time == ended.expire_time
    clock.moment += timedelta(hours=1)
    with pytest.raises(FailedPreconditionError):
        store.rotate(old.key_id, timedelta(hours=1))
    assert id_of(text) == new.key_id


def test_last_uses_only_go_forward(store: KeyStore) -> None:
    key, _ = store.create("robot")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    store.note_uses({key.key_id: moment, "unknown": moment})
    store.note_uses({key.key_id: moment - timedelta(days=1)})
    assert store.get(key.key_id).last_use_time == moment


def test_keys_of_the_first_schema_keep_every_right(tmp_path: Path) -> None:
    url, folder = f"sqlite:///{tmp_path}/old.sqlite", tmp_path / "migrations"
    shutil.copytree(migrations("gateway"), folder)
    for later in (folder / "versions").glob("*.py"):
        if not later.name.startswith("0001"):
            later.unlink()
    engine = open_database(url, folder)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO api_keys (key_id, name, digest, create_time) VALUES ('0123456789ab', 'old', 'd', :now)"),
            {"now": datetime(2026, 1, 1, tzinfo=UTC)},
        )
    engine.dispose()
    store = KeyStore.open(url)
    (key,) = store.list()
    assert key.roles == set(Role)
    assert (key.expire_time, key.tenant, key.limits) == (None, "", KeyLimits())
    store.close()


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
    ring = KeyRing(table.load, min_pause_s=0.01)
    await ring.refresh()
    text = table.add()
    assert (await ring.check(text)).key_id == id_of(text)


@pytest.mark.parametrize("text", [None, "", "nonsense", "tm_" + "0" * 12 + "_" + "0" * 64])
async def test_ring_refuses_with_what_to_do(text: str | None) -> None:
    ring = KeyRing(Table().load, min_pause_s=0.0)
    with pytest.raises(UnauthenticatedError, match="tidemill keys create"):
        await ring.check(text)


async def test_ring_refuses_a_key_whose_secret_is_another_ones() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load, min_pause_s=0.0)
    await ring.refresh()
    with pytest.raises(UnauthenticatedError):
        await ring.check(text[:16] + "0" * 64)


async def test_ring_forgets_revoked_keys() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load, min_pause_s=0.0)
    await ring.refresh()
    key = table.keys[0]
    table.keys[0] = ApiKey(key.key_id, key.name, key.digest, key.create_time, datetime.now(UTC))
    await ring.refresh()
    with pytest.raises(UnauthenticatedError):
        await ring.check(text)


async def test_keys_that_cannot_be_read_leave_the_known_ones_valid_and_ask_others_to_come_again() -> None:
    table = Table()
    text = table.add()
    ring = KeyRing(table.load, min_pause_s=0.0)
    await ring.refresh()

    def broken() -> Sequence[ApiKey]:
        raise OSError("the database is unavailable")

    ring._load = broken
    assert (await ring.check(text)).key_id == id_of(text)
    with pytest.raises(UnavailableError) as caught:
        await ring.check("tm_" + "0" * 12 + "_" + "0" * 64)
    assert caught.value.retry_after_s


async def test_ring_refuses_an_expired_key_and_says_since_when() -> None:
    table, clock = Table(), FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
    key_text_ = table.add()
    table.keys[0] = replace(table.keys[0], expire_time=clock.now() + timedelta(hours=1))
    ring = KeyRing(table.load, min_pause_s=0.0, clock=clock)
    await ring.refresh()
    await ring.check(key_text_)
    clock.moment += timedelta(hours=1)
    with pytest.raises(UnauthenticatedError, match="expired at 2026-01-01 01:00 UTC") as caught:
        await ring.check(key_text_)
    assert caught.value.reason == "API_KEY_EXPIRED"


async def test_last_uses_are_written_together() -> None:
    table, clock = Table(), FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
    written: list[Mapping[str, datetime]] = []
    texts = [table.add(), table.add()]
    ring = KeyRing(table.load, written.append, min_pause_s=0.0, clock=clock)
    await ring.refresh()
    for _ in range(10):
        await ring.check(texts[0])
    assert not written
    await ring.write_uses()
    await ring.write_uses()
    assert written == [{id_of(texts[0]): clock.now()}]


async def test_a_use_is_written_soon_and_then_once_a_minute() -> None:
    table, clock = Table(), FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
    written: list[Mapping[str, datetime]] = []
    text = table.add()

    def note(uses: Mapping[str, datetime]) -> None:
        if broken:
            raise OSError("the database is unavailable")
        written.append(uses)
        table.keys[0] = replace(table.keys[0], last_use_time=uses[table.keys[0].key_id])

    broken = True
    ring = KeyRing(table.load, note, refresh_s=0.001, min_pause_s=0.0, clock=clock)
    await ring.refresh()
    await ring.check(text)
    running = asyncio.create_task(ring.run())
    try:
        before = table.readings
        await eventually(lambda: table.readings > before, "a try")
        broken = False
        await eventually(lambda: len(written) == 1, "the first use, though the database was unavailable")
        clock.moment += timedelta(seconds=30)
        await ring.check(text)
        before = table.readings
        await eventually(lambda: table.readings > before + 2, "some steps")
        assert len(written) == 1
        clock.moment += timedelta(seconds=30)
        await ring.check(text)
        await eventually(lambda: len(written) == 2, "the use of a minute later")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
