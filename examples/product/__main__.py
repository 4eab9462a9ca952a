"""Runs the example on a mesh of its own: `make loop`, or `python -m examples.product --short --state FOLDER`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from examples.product.mesh import CommandError, Mesh
from examples.product.story import SHORT, WHOLE, StoryError, tell
from infra.stack.assets import prepare
from infra.stack.layout import Home
from services.kit.config import home_dir


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.product", description="A product whose customers teach its model."
    )
    parser.add_argument("--short", action="store_true", help="five minutes: one lesson, no sabotage")
    parser.add_argument("--state", type=Path, help="state folder of the mesh; a new one under /tmp by default")
    parser.add_argument("--running", action="store_true", help="the mesh of --state runs already, and is left running")
    parser.add_argument("--out", type=Path, default=Path("build/loop"), help="folder of the plot and the table")
    given = parser.parse_args()
    if given.running and given.state is None:
        parser.error("--running needs --state, the state folder of the mesh")
    home = Home(home_dir())
    prepare(home, {"bge-small-zh", "reviews"})
    mesh = Mesh(given.state or Path(tempfile.mkdtemp(prefix="tidemill-loop-")))
    return asyncio.run(_run(mesh, home.data / "reviews" / "reviews.jsonl", given))


async def _run(mesh: Mesh, reviews: Path, given: argparse.Namespace) -> int:
    try:
        if not given.running:
            await mesh.command("up")
        return await tell(mesh, reviews, given.out, SHORT if given.short else WHOLE)
    except (CommandError, StoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        if not given.running:
            await mesh.command("down")


if __name__ == "__main__":
    sys.exit(main())
