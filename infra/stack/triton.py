"""Triton Inference Server with its Python backend and explicit model control.

It is the one that `TIDEMILL_TRITON_SERVER` names, as in the official image, else that of the wheel `nvidia-pytriton`.
The wheel's backend folder has no stub; its stubs, one per Python version, are elsewhere. So a private backend folder is
put together once for each Python version, with a stub that works with the installed NumPy. The inference service loads
the models; the repository starts empty.

Whoever can call this server can run code as its user: a request to load a model may bring the model's files. It
therefore listens on a Unix socket, or on a port with mutual TLS, with neither HTTP nor metrics.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import secrets
import shutil
import sys
import sysconfig
from functools import partial
from pathlib import Path

from infra.stack import certificates
from infra.stack.addresses import Addresses
from infra.stack.assets.store import place_folder
from infra.stack.child import ChildSpec, Program
from infra.stack.errors import StackError
from infra.stack.layout import Home, Layout, import_roots
from infra.stack.libpython import find_libpython, library_name
from infra.stack.private import empty_folder
from infra.stack.probes import grpc_health, triton_alive
from infra.stack.triton_stub import for_numpy_2

SERVER = "TIDEMILL_TRITON_SERVER"
"""Environment variable: folder of an installed Triton (`/opt/tritonserver` in the official image), instead of the
wheel's. Its Python backend must be built for the Python that runs the mesh, and work with its NumPy."""
HOST = "TIDEMILL_TRITON_HOST"
"""Environment variable: address that Triton's gRPC listens on instead of its socket, such as 0.0.0.0, for gateways on
other machines. Callers must show a certificate of the mesh."""
PACKAGE = "nvidia-pytriton"
# Only a started server reports its version (`server_version` in its log); an installed one also has it in a file.
_SERVER_OF_PACKAGE = {"0.7": "2.51.0"}
_VERSION_FILE = "TRITON_VERSION"
_STUB = "triton_python_backend_stub"
_STUB_START_S = 120
# Triton knows ports only and appends one to the address, so that the name of its socket ends with it.
_SOCKET_NUMBER = 1
_PORT = 8001
# Interfaces that nothing here uses. Shared memory has known vulnerabilities before 2.59 (docs/security.md); traces
# and logs write to files that the caller names. Triton cannot switch them off, but can ask their callers for a secret,
# so they get a random one that is not kept. Every user can read it in the command line, but only the mesh's user can
# open the socket, and that user may stop the server anyway.
_REFUSED = "shared-memory,trace,logging"


def child(layout: Layout) -> ChildSpec:
    """The server as a child of the supervisor."""
    on_port = bool(os.environ.get(HOST))
    tls = certificates.shown(layout.state.peer_keys) if on_port else None
    return ChildSpec(
        name="triton",
        ports={"triton_grpc": _PORT} if on_port else {},
        sockets={} if on_port else {"triton_grpc": f"triton:{_SOCKET_NUMBER}"},
        prepare=partial(_prepare, layout),
        probe=grpc_health("triton_grpc", tls),
        # A model that cannot be loaded makes the server unready, and no restart fixes that.
        alive=triton_alive("triton_grpc", tls),
        stop_grace_s=30.0,
    )


def named_server() -> Path | None:
    """The folder that the environment names; None for the wheel's server.

    Raises:
        StackError: there is no server in the folder.
    """
    text = os.environ.get(SERVER)
    if not text:
        return None
    folder = Path(text)
    if not (folder / "bin" / "tritonserver").is_file():
        raise StackError(f"{SERVER} names {folder}, where there is no bin/tritonserver: correct it, or unset it.")
    return folder


def server_folder() -> Path:
    """The server's folder: the one that the environment names, else the one inside the installed wheel.

    Raises:
        StackError: there is no server in the named folder, or the wheel is not installed.
    """
    if (named := named_server()) is not None:
        return named
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise StackError(f"The package {PACKAGE} is missing: install the extra `stack` (make setup).") from error
    return Path(str(distribution.locate_file("pytriton/tritonserver")))


def server_version() -> str:
    """The server's version, such as `2.51.0`; empty if it is not known.

    Raises:
        StackError: there is no server.
    """
    named = named_server()
    if named is None:
        server_folder()
        package = importlib.metadata.version(PACKAGE)
        return _SERVER_OF_PACKAGE.get(".".join(package.split(".")[:2]), "")
    try:
        return (named / _VERSION_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def place_backends(home: Home) -> Path:
    """Returns the backends folder; puts the wheel's together with the stub of this Python.

    Raises:
        StackError: the server has no Python backend for this Python.
    """
    server = server_folder()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if named_server() is not None:
        stub = server / "backends" / "python" / _STUB
        if not stub.is_file() or library_name().encode() not in stub.read_bytes():
            raise StackError(
                f"{stub} is not for Python {python}, which runs this mesh: make the environment with the Python that "
                "Triton's Python backend was built for."
            )
        return server / "backends"
    stub = server / "python_backend_stubs" / python / _STUB
    if not stub.is_file():
        raise StackError(f"{PACKAGE} has no stub for Python {python}: use Python 3.11, 3.12 or 3.13.")
    version = importlib.metadata.version(PACKAGE)
    numpy = int(importlib.metadata.version("numpy").split(".")[0])

    def build(folder: Path) -> None:
        shutil.copytree(server / "backends" / "python", folder / "python")
        target = folder / "python" / stub.name
        original = stub.read_bytes()
        target.write_bytes(original if numpy < 2 else for_numpy_2(original))
        target.chmod(0o755)

    place = home.triton / f"{version}-python{python}-numpy{numpy}" / "backends"
    return place_folder(place, f"{PACKAGE} {version}", build)


def shared_memory_prefix(layout: Layout) -> str:
    """Prefix of the names of this mesh's shared memory regions, so that what a killed server left can be removed."""
    return "tidemill_" + hashlib.sha256(str(layout.state.root).encode()).hexdigest()[:10] + "_"


def place_python(folder: Path) -> Path:
    """Writes a virtual environment with the packages of this one; returns its folder of programs.

    The stub embeds Python in isolated mode: it ignores PYTHON* variables and uses the environment of the `python3` that
    comes first in PATH. This one sees all packages of the running environment and Tidemill's code, and writes no byte
    code into the model repository, which may contain only published files.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    programs, packages = folder / "bin", folder / "lib" / f"python{version}" / "site-packages"
    programs.mkdir(parents=True, exist_ok=True)
    packages.mkdir(parents=True, exist_ok=True)
    base = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    link = programs / "python3"
    link.unlink(missing_ok=True)
    link.symlink_to(base / f"python{version}")
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    lines = ["import sys; sys.dont_write_bytecode = True"]
    lines += [f"import site; site.addsitedir({path!r})" for path in seen]
    lines += [str(path) for path in import_roots()]
    (packages / "tidemill.pth").write_text("\n".join(lines) + "\n")
    return programs


def environment(library: Path, programs: Path, temporary: Path) -> dict[str, str]:
    """The server's environment: lets its stub find this Python and its libraries.

    Args:
        library: the shared library of this Python.
        programs: the folder that `place_python` returned.
        temporary: folder for temporary files.
    """
    # The stub looks for the wheel's libraries relative to its place in the wheel.
    bundled = "" if named_server() is not None else str(server_folder().parents[1] / "nvidia_pytriton.libs")
    libraries = (str(library.parent), bundled, os.environ.get("LD_LIBRARY_PATH"))
    return {
        **os.environ,
        "TMPDIR": str(temporary),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        # The server starts its stub through bash.
        "PATH": os.pathsep.join(filter(None, (str(programs), os.environ.get("PATH"), os.defpath))),
    }


def _listen(layout: Layout, address: str) -> tuple[str, ...]:
    """The options that make Triton listen on `unix:/path:number`, or on a port with mutual TLS."""
    path, _, number = address.rpartition(":")
    host = os.environ.get(HOST)
    if not host:
        return f"--grpc-address={path}", f"--grpc-port={number}"
    if not os.environ.get("TIDEMILL_PEER_CERT"):
        certificates.place(layout.state.peer_keys)
    files = certificates.shown(layout.state.peer_keys)
    return (
        f"--grpc-address={host}",
        f"--grpc-port={number}",
        *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true"),
        f"--grpc-server-cert={files.certificate}",
        f"--grpc-server-key={files.key}",
        f"--grpc-root-cert={files.authority}",
    )


def _prepare(layout: Layout, addresses: Addresses) -> Program:
    library = find_libpython()
    if library is None:
        raise StackError(
            f"Triton needs {library_name()}, which this Python lacks; `tidemill up` says how to install it."
        )
    backends = place_backends(layout.home)
    repository = layout.state.triton_repository
    repository.mkdir(parents=True, exist_ok=True)
    prefix = shared_memory_prefix(layout)
    server = server_folder()
    command = (
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        # Ready is whoever answers: else one build that was refused, or is being loaded, takes the whole server out of
        # service. A model's own readiness says whether it is loaded.
        "--strict-readiness=false",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_START_S}",
        f"--cache-directory={server / 'caches'}",
        *("--allow-http=false", "--allow-metrics=false", *_listen(layout, addresses["triton_grpc"])),
        f"--grpc-restricted-protocol={_REFUSED}:refused={secrets.token_hex(16)}",
        "--exit-timeout-secs=20",
        "--log-format=ISO8601",
    )
    return Program(
        command=command,
        environment=environment(
            library, place_python(repository.with_name("python")), empty_folder(repository.with_name("tmp"))
        ),
        folder=repository.parent,
        leftovers=(Path("/dev/shm"), f"{prefix}*"),  # noqa: S108 - where POSIX shared memory lies
        read_once=tuple(certificates.shown(layout.state.peer_keys)) if os.environ.get(HOST) else (),
    )
