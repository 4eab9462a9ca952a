"""Files and batches on disk: who may work on one, how much is kept, and for how long."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from gateway.batches import store as stores
from gateway.batches.objects import KEEP_S, WINDOW_S
from gateway.batches.store import BatchStore
from services.kit.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def put(store: BatchStore, size: int = 10, keep_s: int = KEEP_S, tenant: str = "t") -> str:
    return store.put_file(tenant, "f", io.BytesIO(b"x" * size), size, keep_s).id


def make(store: BatchStore) -> str:
    return store.create_batch("t", "key", put(store), CHAT, None, KEEP_S).id


def test_one_process_works_on_a_batch_until_it_lets_go(tmp_path: Path) -> None:
    one, two = (BatchStore(tmp_path, 1000, Clock()) for _ in range(2))
    batch = make(one)
    assert two.unfinished() == [("t", batch)]
    claim = one.claim("t", batch)
    assert claim is not None
    assert two.claim("t", batch) is None
    claim.close()
    claim = two.claim("t", batch)
    assert claim is not None
    stored = claim.load()
    stored.batch.status = "completed"
    claim.save(stored)
    claim.close()
    assert one.claim("t", batch) is None
    assert one.unfinished() == []


def test_outputs_are_placed_once_however_often_it_is_tried(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, 1000, Clock())
    claim = store.claim("t", make(store))
    assert claim is not None
    stored = claim.load()
    claim.path("out").write_bytes(b"answers")
    claim.path("err").touch()
    stored.batch.output_file_id = "file-" + "0" * 26
    for _ in range(2):  # a kill came between the two
        store.place_outputs(claim, stored)
        assert store.content_of("t", stored.batch.output_file_id).read_bytes() == b"answers"
        assert store.get_file("t", stored.batch.output_file_id).purpose == "batch_output"
    assert not claim.path("err").exists()
    claim.close()
    with pytest.raises(FailedPreconditionError, match="has the purpose batch_output"):
        store.create_batch("t", "key", stored.batch.output_file_id, CHAT, None, KEEP_S)


def test_a_tenant_keeps_so_much_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BatchStore(tmp_path, 50_000, Clock())
    file = put(store, 20_000)
    store.create_batch("t", "key", file, CHAT, None, KEEP_S)  # its copy of the file costs nothing
    used = store.used("t")
    assert 20_000 < used < 22_000
    with pytest.raises(ResourceExhaustedError, match="limit of 50,000 bytes") as full:
        put(store, 50_001 - used)
    put(store, 40_000, tenant="another")
    monkeypatch.setattr(stores, "_MAX_OPEN", 1)
    with pytest.raises(ResourceExhaustedError, match="have not ended") as many:
        store.create_batch("t", "key", put(store, 1), CHAT, None, KEEP_S)
    assert (full.value.wait_s, many.value.wait_s) == (10, 10)
    monkeypatch.setattr(stores, "_MAX_FILES", 1)
    with pytest.raises(ResourceExhaustedError):
        put(store, 1, tenant="another")


def test_what_has_expired_is_not_found_and_deleted(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 100_000, clock)
    short, batch = put(store, keep_s=3600), make(store)
    clock.now += 3600
    with pytest.raises(NotFoundError):
        store.get_file("t", short)
    store.sweep()
    assert [item.id for item in store.list_files("t", "asc", "", 10, "")[0]] == [
        store.get_batch("t", batch).input_file_id
    ]
    claim = store.claim("t", batch)
    assert claim is not None
    stored = claim.load()
    stored.batch.status = "failed"
    claim.save(stored)
    claim.close()
    clock.now += KEEP_S + WINDOW_S
    store.sweep()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_batch_that_has_not_ended_is_never_swept(tmp_path: Path) -> None:
    clock = Clock()
    store = BatchStore(tmp_path, 1000, clock)
    batch = make(store)
    clock.now += 10 * KEEP_S
    store.sweep()
    assert store.unfinished() == [("t", batch)]
    claim = store.claim("t", batch)
    assert claim is not None
    assert claim.path("in").read_bytes() == b"x" * 10
    claim.close()
