"""Two small models that a running mesh serves: one that classifies, one that writes noise."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import grpc
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from infra.stack.state import StackState
from services.kit.ids import new_id
from services.kit.storage.signing import MANIFEST, SigningKey
from tests.integration.inference.builds import make_classifier, make_generator
from tests.load.caller import CLASSIFIER, WRITER
from tests.publishing import publish_when_available

_PATIENCE_S = 240.0


def publish_small_models(stack: StackState, scratch: Path) -> None:
    """Makes both where `scratch` does not hold them yet, signs them with the mesh's key and publishes them.

    It speaks to the service itself: no door publishes what no run made.
    """
    if not scratch.exists():
        make_classifier(scratch / CLASSIFIER)
        make_generator(scratch / WRITER, scratch / "parts")
    for model in (CLASSIFIER, WRITER):
        publish(stack, scratch / model, model)


def publish(stack: StackState, build: Path, model: str) -> None:
    """Puts a build into the mesh's store, signs it with the mesh's key and publishes it as a model's next version."""
    layout = stack.layout.state
    digest = json.loads((build / MANIFEST).read_text(encoding="utf-8"))["digest"]
    folder = layout.artifacts / "load" / build.name
    shutil.copytree(build, folder)
    SigningKey(layout.model_keys / "signing.pem", layout.model_keys / "trusted").sign(folder)
    _give(folder, layout.artifacts)
    request = pb.PublishModelRequest(
        request_id=new_id(),
        model=f"models/{model}",
        artifact_uri=f"file://{folder}",
        digest=digest,
        run="runs/load",
        dataset_version="datasets/load/versions/1",
    )
    with grpc.insecure_channel(stack.address("inference")) as channel:
        publish_when_available(InferenceServiceStub(channel), request, _PATIENCE_S)


def _give(folder: Path, store: Path) -> None:
    """Makes a folder that is new in the store, and what is in it, its owner's: started by root, a mesh is not root."""
    owner = store.stat()
    for path in (folder.parent, folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
