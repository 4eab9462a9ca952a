"""Becomes the program that it is told to start: `python launch.py PARENT UID:GID PROGRAM ARGUMENTS...`.

Run as a file, by the supervisor only. Before it hands over to the program it ties the child's life to the parent's
(the kernel kills the child when the supervisor dies, however it dies), and gives up root where the program must not
have it. This is done here, after the fork and in a process of its own, because code between fork and exec of a
threaded parent can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Never returns."""
    parent, user, *command = arguments
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if user != "-":
        uid, gid = (int(part) for part in user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which clears it.
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):  # it died before the line above took effect
        os._exit(1)
    os.execvpe(command[0], command, os.environ)  # noqa: S606 - the point of this file


if __name__ == "__main__":
    main(sys.argv[1:])
