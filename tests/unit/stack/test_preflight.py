"""Each thing that is wrong with a machine yields a sentence that says what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from infra.stack import preflight
from infra.stack.errors import PreflightError
from infra.stack.layout import Layout
from infra.stack.preflight import Machine, gather, problems

GOOD = Machine(
    system="Linux",
    machine="x86_64",
    python=(3, 11),
    executable="/opt/python/bin/python3",
    home=Path("/home/ada/.cache/tidemill"),
    state=Path("/home/ada/.local/state/tidemill"),
    home_free_gib=50.0,
    state_free_gib=50.0,
    unwritable=(),
    memory_gib=12.0,
    shared_memory_mib=1024.0,
    running=False,
    missing_modules=(),
    libpython=Path("/opt/python/lib/libpython3.11.so.1.0"),
)


def test_a_good_machine_has_no_problem() -> None:
    assert problems(GOOD) == []
    assert problems(dataclasses.replace(GOOD, python=(3, 12))) == []
    assert problems(dataclasses.replace(GOOD, python=(3, 13))) == []


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({"python": (3, 14)}, ["3.14", "3.11, 3.12 or 3.13", "PYTHON=python3.12"]),
        ({"python": (3, 10)}, ["3.10", "3.11, 3.12 or 3.13"]),
        ({"missing_modules": ("jgo", "pip")}, ["jgo, pip", "make setup"]),
        ({"libpython": None}, ["libpython3.11.so.1.0", "libpython3.11;", "uv python install 3.11"]),
        ({"home_free_gib": 0.5}, ["TIDEMILL_HOME", "0.5 GiB", "free some"]),
        ({"state_free_gib": 1.25}, ["TIDEMILL_STATE", "1.2 GiB"]),
        ({"memory_gib": 2.0}, ["2.0 GiB of memory", "8 GiB or more"]),
        ({"shared_memory_mib": 8.0}, ["/dev/shm", "--shm-size"]),
        ({"root": "The mesh must not run as root."}, ["must not run as root"]),
        ({"unwritable": (Path("/srv/x"),)}, ["/srv/x", "TIDEMILL_STATE"]),
    ],
)
def test_each_lack_has_its_sentence(change: dict[str, Any], phrases: list[str]) -> None:
    (sentence,) = problems(dataclasses.replace(GOOD, **change))
    for phrase in phrases:
        assert phrase in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_another_platform_is_sent_to_the_containers_and_given_no_other_reason(system: str, machine: str) -> None:
    facts = dataclasses.replace(GOOD, system=system, machine=machine, libpython=None, memory_gib=0.1)
    (sentence,) = problems(facts)
    assert system in sentence
    assert "infra/compose" in sentence


def test_a_running_meshs_own_memory_is_not_reported_as_missing() -> None:
    assert problems(dataclasses.replace(GOOD, memory_gib=2.0, running=True)) == []


def test_all_lacks_are_reported_at_once() -> None:
    assert len(problems(dataclasses.replace(GOOD, memory_gib=1.0, home_free_gib=0.0, libpython=None))) == 3


def test_facts_of_folders_that_do_not_exist_come_from_the_ones_above(tmp_path: Path) -> None:
    facts = gather(Layout.of(tmp_path / "a" / "b", tmp_path / "c"))
    assert facts.home_free_gib > 0
    assert facts.unwritable == ()
    assert not (tmp_path / "a").exists()


def test_the_check_raises_all_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "gather", lambda layout: dataclasses.replace(GOOD, memory_gib=1.0, python=(3, 9)))
    with pytest.raises(PreflightError) as caught:
        preflight.check(Layout.of(tmp_path, tmp_path))
    assert len(caught.value.message.splitlines()) == 2
