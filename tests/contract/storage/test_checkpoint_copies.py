"""Copies of checkpoints: another machine continues from the newest complete one, and from no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from services.training.adapters.checkpoint_copies import CheckpointCopies
from tests.s3 import new_bucket


@pytest.fixture
def uri(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the copies of a run go."""
    return f"{new_bucket(s3, monkeypatch)}/runs/1/checkpoints"


def checkpoint(machine: Path, step: int, content: str = "weights") -> Path:
    """A stored checkpoint, as the only one of a machine."""
    folder = machine / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_text(f"{content} {step}")
    (folder / "state.json").write_text("{}")
    return folder


def copied(machine: Path, uri: str, *steps: int) -> None:
    copies = CheckpointCopies(machine / "checkpoints", uri)
    for step in steps:
        copies.copy(checkpoint(machine, step))
        assert copies.finish(30)


def there(uri: str) -> list[str]:
    return sorted(path.rpartition("checkpoints/")[2] for path in s3fs.S3FileSystem(use_listings_cache=False).find(uri))


def test_another_machine_gets_the_newest_and_only_that_is_kept(tmp_path: Path, uri: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    copied(one, uri, 5, 10)
    assert there(uri) == [f"step-00000010/{name}" for name in ("manifest.json", "state.json", "weights.safetensors")]
    copies = CheckpointCopies(two / "checkpoints", uri)
    assert copies.fetch()
    assert (two / "checkpoints" / "step-00000010" / "weights.safetensors").read_text() == "weights 10"
    assert sorted(path.name for path in (two / "checkpoints" / "step-00000010").iterdir()) == [
        "state.json",
        "weights.safetensors",
    ]
    # It is there now.
    assert not copies.fetch()
    copies.discard()
    assert there(uri) == []
    copies.discard()
    assert not CheckpointCopies(tmp_path / "three" / "checkpoints", uri).fetch()


def test_what_is_newer_here_stays(tmp_path: Path, uri: str) -> None:
    copied(tmp_path / "one", uri, 5)
    checkpoint(tmp_path / "two", 6)
    assert not CheckpointCopies(tmp_path / "two" / "checkpoints", uri).fetch()


@pytest.mark.parametrize(
    "damage",
    [
        lambda files, uri: files.rm(f"{uri}/step-00000010/manifest.json"),
        lambda files, uri: files.pipe_file(f"{uri}/step-00000010/weights.safetensors", b"others"),
        lambda files, uri: files.rm(f"{uri}/step-00000010/state.json"),
    ],
    ids=["without its manifest", "with another content", "without a file"],
)
def test_a_copy_that_is_not_whole_is_not_used(
    tmp_path: Path, uri: str, damage: Callable[[s3fs.S3FileSystem, str], None]
) -> None:
    copied(tmp_path / "one", uri, 10)
    damage(s3fs.S3FileSystem(), uri)
    copies = CheckpointCopies(tmp_path / "two" / "checkpoints", uri)
    assert not copies.fetch()
    assert list((tmp_path / "two").glob("checkpoints/*")) == []


def test_a_checkpoint_that_is_gone_before_it_was_copied_is_copied(tmp_path: Path, uri: str) -> None:
    held, copies = threading.Event(), CheckpointCopies(tmp_path / "checkpoints", uri)
    copy = copies._copy

    def slow(folder: Path) -> None:
        held.wait(30)
        copy(folder)

    copies._copy = slow  # type: ignore[method-assign]
    for step in (5, 6, 7):
        folder = checkpoint(tmp_path, step)
        copies.copy(folder)
        # As the next checkpoint does it.
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert not copies.finish(0.05)
    held.set()
    assert copies.finish(30)
    # The second waited, and was left out for the third.
    assert [name for name in there(uri) if "weights" in name] == ["step-00000007/weights.safetensors"]
    assert list((tmp_path / "checkpoints-to-copy").iterdir()) == []


def test_a_store_that_is_away_costs_a_copy_and_nothing_else(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copied(tmp_path, uri.replace("test-", "nowhere-"), 5)
    assert "a checkpoint was not copied" in caplog.text
    copied(tmp_path, uri, 6)
    assert CheckpointCopies(tmp_path / "two" / "checkpoints", uri).fetch()
