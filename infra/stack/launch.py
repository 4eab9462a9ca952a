"""Starts a program in place of itself: `python launch.py PARENT PROGRAM ARGUMENTS...`.

Run as a file, by the supervisor only. Before it hands over to the program it ties the child's life to the parent's
(the kernel kills the child when the supervisor dies, however it dies), and moves it into a network of its own if
asked to. This is done here, after the fork and in a process of its own, because code between fork and exec of a
threaded parent can deadlock.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1

NETWORK = "TIDEMILL_LAUNCH_NETWORK"
"""Environment variable, JSON: the program gets a network of its own, and `command` with `environment` is started beside
it with the descriptor of a socket that listens on `port` of the machine's loopback. Not an argument, which every user
of the machine could read."""
CHECK = "--check-network"


def main(arguments: list[str]) -> None:
    """Never returns."""
    if arguments == [CHECK]:
        _private_network()
        os._exit(0)
    parent, *command = arguments
    network = os.environ.pop(NETWORK, "")
    if network:
        _with_guard(json.loads(network))
    _die_with(int(parent))
    os.execvpe(command[0], command, os.environ)  # noqa: S606 - the point of this file


def _die_with(parent: int) -> None:
    if _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the line above took effect
        os._exit(1)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _with_guard(network: dict[str, Any]) -> None:
    """Moves this process into its own network, which can only be reached through the guard."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # A socket stays in the network namespace in which it was created.
    listener.bind(("127.0.0.1", network["port"]))
    listener.listen(128)
    _private_network()
    program = os.getpid()
    if os.fork() == 0:
        _die_with(program)
        listener.set_inheritable(True)
        command = [*network["command"], str(listener.fileno()), str(network["port"])]
        os.execvpe(command[0], command, {**os.environ, **network["environment"]})  # noqa: S606 - as below
    listener.close()


def _private_network() -> None:
    """Creates a network with only a loopback interface; without root this needs a user namespace.

    Raises:
        OSError: the kernel does not let this user have one.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc().unshare(_CLONE_NEWNET | (0 if uid == 0 else _CLONE_NEWUSER)) != 0:
        raise OSError(ctypes.get_errno(), "unshare failed")
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - started often, and pathlib is slow to import
                file.write(text)
    with socket.socket() as any_socket:
        request = struct.pack("16sh", b"lo", 0) + bytes(22)
        flags = struct.unpack("16sh", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)[:18])[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP) + bytes(22))


if __name__ == "__main__":
    main(sys.argv[1:])
