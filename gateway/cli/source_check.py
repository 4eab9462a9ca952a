"""Checks a pipeline beyond its syntax: files that do not exist, operators and base models that the mesh refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tidemill.cleaning.v1.cleaning_service_pb2 import CleanTextRequest
from tidemill.training.v1.training_service_pb2 import PlanTrainingRequest

from gateway.cli.allowed_sources import source_uri
from services.kit.config import home_dir
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from gateway.cli.connection import Connection
    from gateway.cli.pipeline_file import PipelineFile

_OF_RECIPE = re.compile(r"(operators|augment)\b.*")
PROTOCOLS = ("file", "https", "http", "s3")


def check_sources(file: PipelineFile) -> None:
    """Checks the sources against this machine's files.

    Raises:
        InvalidArgumentError: names line and field of each source that does not exist, and of each address that
            imports do not support.
    """
    found = []
    for number, source in enumerate(file.spec.sources):
        kind, uri = source.WhichOneof("kind"), source_uri(source)
        if kind is None or not uri:
            continue
        in_folder = "pattern" in getattr(source, kind).DESCRIPTOR.fields_by_name
        if why := _wrong(uri, wants_folder=in_folder):
            found.append(FieldViolation(f"sources[{number}].{kind}.uri", why))
    if found:
        raise file.locate(InvalidArgumentError("Some sources do not exist or are not supported.", violations=found))


def check_base_model(file: PipelineFile) -> None:
    """Checks the folder of a base model against this machine's files; the mesh knows models by name.

    Raises:
        InvalidArgumentError: names line and field of a folder that is not a model's.
    """
    name = file.spec.training.base_model
    if "/" not in name:
        return
    folder = Path(name).expanduser()
    if not folder.is_absolute():
        why = f"{name} is relative; give the folder's absolute path."
    elif not folder.is_dir():
        why = f"the folder {folder} does not exist; correct the path, or use the name of a prepared model."
    elif not (folder / "config.json").is_file():
        why = f"{folder} has no config.json, so it is not a model in Hugging Face's layout."
    elif not any(folder.glob("*.safetensors")):
        why = f"{folder} has no *.safetensors files; other weight formats can run code and are not loaded."
    else:
        return
    violations = [FieldViolation("training.base_model", why)]
    raise file.locate(InvalidArgumentError("The base model cannot be used.", violations=violations))


def check_model_name(file: PipelineFile, connection: Connection) -> None:
    """Lets the mesh check the name of a base model; loads and stores nothing. A folder is for `check_base_model`.

    Raises:
        InvalidArgumentError: names line and field of a name that the mesh does not know.
    """
    if "/" in file.spec.training.base_model:
        return
    request = PlanTrainingRequest(spec=file.spec.training)
    try:
        with connection.errors():
            connection.training.PlanTraining(request, metadata=connection.metadata, timeout=60)
    except (InvalidArgumentError, NotFoundError) as error:
        # A method that cannot be planned can be run.
        named = [each for each in error.violations if each.field == "spec.base_model"]
        if named:
            violations = [FieldViolation("training.base_model", each.description) for each in named]
            raise file.locate(InvalidArgumentError(error.message, violations=violations)) from error


def _wrong(uri: str, *, wants_folder: bool) -> str:
    scheme, colon, rest = uri.partition(":")
    if "::" in uri:
        return f"{uri} chains file systems with '::'; give the file's own address."
    if colon and "/" not in scheme and scheme.lower() not in PROTOCOLS:
        return f"the protocol {scheme!r} is not supported; use {', '.join(PROTOCOLS)}."
    if colon and "/" not in scheme and scheme.lower() != "file":
        return ""
    path = Path(unquote(rest.removeprefix("//")) if scheme.lower() == "file" and colon else uri)
    if path.is_relative_to(home_dir() / "data"):
        # Example data: fetched before the mesh reads it.
        return ""
    if wants_folder:
        return "" if path.is_dir() else f"the folder {path} does not exist; create it or correct the path."
    # Path.glob takes only relative patterns, so an absolute one is split at the file system's root.
    if path.is_file() or any(match.is_file() for match in Path(path.anchor).glob(str(path.relative_to(path.anchor)))):
        return ""
    return f"{path} is not a file, and no file matches it; correct the path or the glob."


def check_recipe(file: PipelineFile, connection: Connection) -> None:
    """Lets the mesh check the recipe as in a real run; stores nothing.

    Raises:
        InvalidArgumentError: names line and field of what is wrong with an operator or an augmenter.
    """
    dataset = file.spec.dataset
    if not dataset.operators and not dataset.HasField("augment"):
        return
    request = CleanTextRequest(text="-", operators=dataset.operators)
    if dataset.HasField("augment"):
        request.augment.CopyFrom(dataset.augment)
    try:
        with connection.errors():
            connection.cleaning.CleanText(request, metadata=connection.metadata, timeout=30)
    except InvalidArgumentError as error:
        violations = [
            FieldViolation(f"dataset.{found[0]}", violation.description)
            for violation in error.violations
            if (found := _OF_RECIPE.search(violation.field))
        ]
        raise file.locate(InvalidArgumentError(error.message, violations=violations)) from error
