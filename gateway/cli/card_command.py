"""`tidemill card`: what a model is, where it comes from and how good it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import grpc
import typer
from tidemill.cleaning.v1.cleaning_service_pb2 import GetDatasetVersionRequest
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.inference.v1.inference_service_pb2 import GetModelRequest, ListModelVersionsRequest
from tidemill.inference.v1.model_pb2 import ModelVersion
from tidemill.training.v1.run_pb2 import Run
from tidemill.training.v1.training_service_pb2 import GetRunRequest

from gateway.cards import forms
from gateway.cards.model_card import ModelCard
from gateway.cli.connection import Connection, connect
from gateway.cli.dataset_commands import replaced
from gateway.cli.output import AddressOption, stderr, stdout
from gateway.cli.pages import pages
from gateway.cli.resource_names import model_name
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, not_found

FORMS: Mapping[str, Callable[[ModelCard], str]] = {".md": forms.markdown, ".html": forms.html}
"""By the file's suffix."""
_TIMEOUT_S = 60
_VERSION = re.compile(r"(models/[^/]+)/versions/\d+")


def card(
    name: Annotated[
        str,
        typer.Argument(
            help="A model, whose version that serves is meant; a version such as headlines/versions/3; or a run of a "
            "candidate, runs/ID.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file: .md or .html, which has plots.", show_default=False)
    ] = None,
    address: AddressOption = None,
) -> None:
    """Describes a model: origin, training, quality, builds, and examples of the hold-out."""
    if out is not None and out.suffix not in FORMS:
        raise InvalidArgumentError(f"--out must end with {' or '.join(FORMS)}, not {out.name}.")
    if out is None:
        with connect(address) as connection:
            made = _card(connection, name)
        stdout().print(forms.markdown(made), markup=False, highlight=False, soft_wrap=True)
        return
    try:
        with replaced(out) as file, connect(address) as connection:
            file.write(FORMS[out.suffix](_card(connection, name)).encode())
    except OSError as error:
        raise InvalidArgumentError(f"{out} cannot be written: {error.strerror or error}.") from error
    stderr().print(f"The card is in {out}.", soft_wrap=True)


def _card(connection: Connection, name: str) -> ModelCard:
    version = None if name.startswith("runs/") else _version(connection, model_name(name))
    if version is not None and not version.run:
        raise FailedPreconditionError(
            f"{version.name} was published without a run, so what it learnt is not known.", reason="RUN_UNKNOWN"
        )
    request = GetRunRequest(name=version.run if version is not None else name)
    run: Run = connection.training.GetRun(request, metadata=connection.metadata, timeout=_TIMEOUT_S).run
    if run.state != Run.STATE_SUCCEEDED:
        state = Run.State.Name(run.state).removeprefix("STATE_").lower()
        raise FailedPreconditionError(
            f"{run.name} is {state}; only a run that succeeded has a card.", reason="RUN_NOT_SUCCEEDED"
        )
    return ModelCard(run, version, _dataset(connection, run.spec.dataset.name))


def _version(connection: Connection, name: str) -> ModelVersion:
    """The version of this name; of a model, the one that serves."""
    if "/versions/" not in name:
        model = connection.inference.GetModel(
            GetModelRequest(name=name), metadata=connection.metadata, timeout=_TIMEOUT_S
        ).model
        if not model.HasField("serving"):
            raise NotFoundError(f"No version of {name} serves; `tidemill models {name}` lists its versions.")
        serving: ModelVersion = model.serving
        return serving
    named = _VERSION.fullmatch(name)
    if named is None:
        raise InvalidArgumentError(f"{name} is not the name of a version, such as headlines/versions/3.")
    request = ListModelVersionsRequest(model=named[1], page_size=1000)
    for page in pages(connection, connection.inference.ListModelVersions, request):
        for each in page.model_versions:
            if each.name == name:
                found: ModelVersion = each
                return found
    raise not_found("version", name, f"`tidemill models {named[1].removeprefix('models/')}` lists versions.")


def _dataset(connection: Connection, name: str) -> DatasetVersion | None:
    """What the run learnt; None where cleaning does not know it any more, or is not there."""
    try:
        request = GetDatasetVersionRequest(name=name)
        version: DatasetVersion = connection.cleaning.GetDatasetVersion(
            request, metadata=connection.metadata, timeout=_TIMEOUT_S
        ).dataset_version
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
            return None
        raise
    return version
