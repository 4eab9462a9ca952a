"""Checks a pipeline beyond its syntax: sources that do not exist, operators that the mesh refuses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tidemill.cleaning.v1.cleaning_service_pb2 import CleanTextRequest

from gateway.cli.allowed_sources import source_uri
from services.kit.config import home_dir
from services.kit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from gateway.cli.connection import Connection
    from gateway.cli.pipeline_file import PipelineFile

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
        InvalidArgumentError: names line and field of what is wrong with an operator.
    """
    if not file.spec.dataset.operators:
        return
    request = CleanTextRequest(text="-", operators=file.spec.dataset.operators)
    try:
        with connection.errors():
            connection.cleaning.CleanText(request, metadata=connection.metadata, timeout=30)
    except InvalidArgumentError as error:
        violations = [
            FieldViolation(f"dataset.{field[field.find('operators') :]}", violation.description)
            for violation in error.violations
            if "operators" in (field := violation.field)
        ]
        raise file.locate(InvalidArgumentError(error.message, violations=violations)) from error
