"""What a command does so that a mesh that root starts belongs to its own user."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from services.kit.config import home_dir, state_dir


def show_to_mesh(roots: Iterable[str]) -> None:
    """If root starts the mesh, makes these folders reachable for its user, even below folders closed to others."""
    try:
        from infra.stack.layout import Layout
        from infra.stack.mesh_user import show
    except ModuleNotFoundError:  # the extra `cli` without `stack`: no mesh on this machine
        return
    show(Layout.of(home_dir(), state_dir()), [Path(root) for root in roots if root.startswith("/")])


def as_owner() -> None:
    """If root runs this command, continues as the mesh's user: root must not trust links and files of that user."""
    try:
        from infra.stack.layout import Layout
        from infra.stack.mesh_user import become_owner
    except ModuleNotFoundError:  # the extra `cli` without `stack`: no mesh on this machine
        return
    become_owner(Layout.of(home_dir(), state_dir()))
