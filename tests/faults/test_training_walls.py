"""What a run may name: data sets of the artefact store, and base models in folders that the mesh's user allowed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidemill.pipeline.v1.cycle_pb2 import PipelineSpec

from gateway.cli.allowed_sources import allow, wanted_roots
from gateway.cli.pipeline_file import PipelineFile
from services.kit.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, TidemillError
from services.kit.source_roots import FILE_NAME
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.signing import TrustedKeys
from services.training.adapters.base_models import BaseModels
from services.training.adapters.model_roots import ModelRoots
from services.training.adapters.snapshots import StoredFolders
from services.training.domain.tasks import GenerationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.full import Full

_REFUSED = (InvalidArgumentError, PermissionDeniedError)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that nothing may call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def check_dataset(store: str, uri: str, cache: Path) -> None:
    spec = TrainingSpec(
        "m", "base", "datasets/d/versions/1", uri, "0" * 64, GenerationTask("{text}", "headline", 8, 8), Full(),
        Optimization(max_steps=1),
    )  # fmt: skip
    StoredFolders(ArtifactStore(store), TrustedKeys(cache), cache).check_dataset(spec)


@pytest.mark.parametrize("root", ["file", "s3"])
@pytest.mark.parametrize(
    "uri",
    [
        "http://{host}/d",
        "reference::http://{host}/d",
        "simplecache::http://{host}/d",
        "zip://d::http://{host}/d.zip",
        "reference::file:///dev/zero",
        "file://{host}{outside}",
        "file:///proc/self",
        "/proc/self/environ",
        "{outside}",
        "{store}/../outside",
        "{store}/%2e%2e/outside",
        "{store}",
        "{store}/d?x=1",
        "{store}/link",
        "memory://d",
        "s3://other/d",
        "relative",
    ],
)
def test_a_data_set_outside_the_store_is_refused_before_anything_is_opened(
    tmp_path: Path, listener: socket.socket, root: str, uri: str
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "store"
    for folder in (outside, inside):
        folder.mkdir()
    (inside / "link").symlink_to(outside)
    if root == "s3" and uri.endswith("/link"):
        pytest.skip("an object store has no links")
    store = inside.as_uri() if root == "file" else "s3://bucket/store"
    given = uri.format(host=f"127.0.0.1:{listener.getsockname()[1]}", outside=outside, store=store)
    with pytest.raises(_REFUSED) as refused:
        check_dataset(store, given, tmp_path / "cache")
    assert [each.field for each in refused.value.violations] == ["spec.dataset.uri"]
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_data_set_in_the_store_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check_dataset(tmp_path.as_uri(), (tmp_path / "d").as_uri(), tmp_path / "cache")


def make_model(folder: Path) -> str:
    """The files that describe a model, without weights that could be loaded."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    (folder / "model.safetensors").touch()
    return str(folder)


def refusal(models: BaseModels, name: str) -> TidemillError:
    """The error that both ways to look at a base model raise."""
    with pytest.raises(TidemillError) as found:
        models.find(name)
    with pytest.raises(type(found.value)):
        models.config(name)
    assert [each.field for each in found.value.violations] == ["spec.base_model"]
    return found.value


def test_a_base_model_outside_the_roots_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside = tmp_path / "root", make_model(tmp_path / "outside")
    models = BaseModels(tmp_path / "models", tmp_path / "downloads", ModelRoots([tmp_path / "models", root]))
    good = make_model(root / "good")
    assert models.find(good).architecture == "encoder"
    (root / "link").symlink_to(outside)
    # A file of the model that is another's: its content would come back in a message or in the weights.
    odd = make_model(root / "odd")
    (Path(odd) / "vocab").mkdir()
    (Path(odd) / "vocab" / "words.json").symlink_to(Path(outside) / "config.json")
    monkeypatch.chdir(tmp_path)
    for name in (
        outside,
        f"{root}/../outside",
        "./outside",
        "/proc/self/cwd/outside",
        "/proc/self",
        "/dev",
        f"http://127.0.0.1{outside}",
        f"reference::file://{outside}",
        f"file://{good}",
        f"{root}/link",
        odd,
        "~root/model",
        # Whether it exists must not be seen either.
        str(tmp_path / "nothing"),
    ):
        assert isinstance(refusal(models, name), _REFUSED), name
    # A word is the name of a prepared model, never a folder.
    assert isinstance(refusal(models, "outside"), NotFoundError)
    assert isinstance(refusal(models, str(root / "nothing")), NotFoundError)


def test_a_root_of_everything_does_not_hold_what_the_kernel_writes(tmp_path: Path) -> None:
    models = BaseModels(tmp_path, tmp_path, ModelRoots([Path("/")]))
    assert models.find(make_model(tmp_path / "m")).architecture == "encoder"
    assert isinstance(refusal(models, f"/proc/self/root{tmp_path}/m/../m"), _REFUSED)
    assert isinstance(refusal(models, "/proc/self"), PermissionDeniedError)


def test_a_model_beside_a_pipeline_that_was_run_here_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, loops = tmp_path / "state", tmp_path / "loops"
    state.mkdir()
    monkeypatch.setenv("TIDEMILL_STATE", str(state))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TIDEMILL_DATA", raising=False)
    model, other = make_model(loops / "model"), make_model(tmp_path / "other")
    models = BaseModels(tmp_path / "models", tmp_path, ModelRoots([tmp_path / "models"], state / FILE_NAME))
    assert isinstance(refusal(models, model), PermissionDeniedError)
    file = PipelineFile(loops / "loop.yaml", PipelineSpec(), {})
    allow(wanted_roots(file), file)
    assert models.find(model).architecture == "encoder"
    assert isinstance(refusal(models, other), PermissionDeniedError)
    allow(wanted_roots(file, [str(tmp_path / "other")]), file)
    assert models.find(other).architecture == "encoder"
