"""What a pipeline file reads on this machine: missing examples are fetched, and the mesh may read the folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import stack_commands
from gateway.cli.allowed_sources import allow, source_uri, unread_folder, wanted_roots
from gateway.cli.mesh_owner import as_owner, show_to_mesh
from gateway.cli.output import stderr
from services.kit.config import home_dir

if TYPE_CHECKING:
    from tidemill.pipeline.v1.cycle_pb2 import PipelineSpec

    from gateway.cli.pipeline_file import PipelineFile

AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Folder or s3:// URL that imports may also read from now on.", show_default=False),
]


def make_readable(file: PipelineFile, more: Sequence[str], address: str | None) -> None:
    """Lets the mesh read what the file names: now, or in the cycles and collections that begin later.

    Args:
        more: values of `--allow`.
        address: of the gateway; None means this machine's mesh, which reads this machine's files, so that missing
            examples are fetched first.

    Raises:
        InvalidArgumentError: a value of `--allow` is too wide or does not exist.
        FailedPreconditionError: the mesh's user cannot read a folder.
    """
    roots = wanted_roots(file, more)
    console = stderr()
    if folder := unread_folder(file, roots):
        console.print(
            f"{folder} contains a home folder, the mesh's state or the system, so that imports are not allowed to read "
            f"it because of this file: move {file.path.name} and its data into a folder of their own.",
            style="yellow",
            soft_wrap=True,
        )
    if address is None:
        with stack_commands.resumable(console, "the same command"):
            stack_commands.fetch(console, missing_assets(file.spec))
        show_to_mesh(roots)
    as_owner()
    allow(roots, file)


def missing_assets(spec: PipelineSpec) -> list[str]:
    """Names of the examples that a pipeline needs and that are not in the home folder yet."""
    from infra.stack.assets import parts
    from infra.stack.layout import Home

    home = Home(home_dir())
    wanted = set(assets_of(spec))
    missing = []
    for part in parts():
        # A user's own file may have the name of an example.
        own = not any(Path(source_uri(source)).is_relative_to(home.data / part.name) for source in spec.sources)
        is_model = spec.training.base_model.startswith(part.name)
        there = any((*home.downloads.glob(f"{part.name}*"), *home.data.glob(f"{part.name}*")))
        if part.name in wanted and part.name not in stack_commands.PROGRAMS and (is_model or not own) and not there:
            missing.append(part.name)
    named = _tables(spec)
    tables = [part.name for part in parts() if part.name in named and not (home.data / part.name).is_dir()]
    return [*missing, *tables]


def assets_of(spec: PipelineSpec) -> list[str]:
    """Names of the assets that a pipeline needs: the mesh's programs, and what model, sources and augmenters name."""
    from infra.stack.assets import parts

    used = [spec.training.base_model]
    used += [source_uri(source) for source in spec.sources]
    tables = _tables(spec)
    words = {word for text in used for word in Path(text).parts}
    return [
        part.name
        for part in parts()
        if part.name in (*stack_commands.PROGRAMS, *tables) or any(word.startswith(part.name) for word in words)
    ]


def _tables(spec: PipelineSpec) -> set[str]:
    """Names of the tables that augmenters look words up in."""
    given = (each.params.fields.get("tables") for each in spec.dataset.augment.operators)
    return {value.string_value for tables in given if tables is not None for value in tables.list_value.values}
