from __future__ import annotations

import pytest

from infra.stack.errors import StackError
from infra.stack.preflight import PYTHONS
from infra.stack.triton import server_folder
from infra.stack.triton_stub import for_numpy_2


def stub_of(python: str) -> bytes:
    return (server_folder() / "python_backend_stubs" / python / "triton_python_backend_stub").read_bytes()


@pytest.mark.parametrize("python", [f"{major}.{minor}" for major, minor in PYTHONS])
def test_the_stub_of_every_supported_python_is_known_and_five_bytes_change(python: str) -> None:
    before = stub_of(python)
    after = for_numpy_2(before)
    changed = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
    assert changed == [(0x20, 0x28)] * 5


@pytest.mark.parametrize("python", [f"{major}.{minor}" for major, minor in PYTHONS])
def test_what_changes_is_the_offset_of_a_32_bit_load(python: str) -> None:
    before = stub_of(python)
    after = for_numpy_2(before)
    places = [at for at in range(len(before)) if before[at] != after[at]]
    loads = sorted(before[at - 3 : at + 1].hex() for at in places)
    # movslq 0x20(%rax),%rax four times, mov 0x20(%rax),%eax once after another instruction's last byte.
    assert loads[1:] == ["48634020"] * 4
    assert loads[0].endswith("8b4020")


@pytest.mark.parametrize("stub", [b"", b"\x7fELF", "changed"])
def test_a_stub_that_no_one_looked_into_is_refused(stub: bytes | str) -> None:
    content = stub if isinstance(stub, bytes) else for_numpy_2(stub_of("3.12"))
    with pytest.raises(StackError, match="make setup"):
        for_numpy_2(content)
