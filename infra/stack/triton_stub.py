"""Lets Triton's Python stub run with NumPy 2.

The stubs of nvidia-pytriton 0.7.0 were compiled against NumPy 1. Only one of the fields that they read moved in
NumPy 2: the item size in `PyArray_Descr`, from byte 0x20 to 0x28. It also became wider, but is little-endian, so the 32
bits that the stub reads still have the size. Five instructions read it, and the displacement in each is one byte. Stubs
are recognised by their digest, and an unknown one is refused, not searched. `docs/adr/0006` says why.

Source: NumPy 2.0 migration guide (C-API changes to the `PyArray_Descr` struct); pybind11's `array_descriptor_proxy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

from infra.stack.errors import StackError

_NUMPY_1, _NUMPY_2 = 0x20, 0x28

ITEM_SIZE_READS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        # Python 3.11, 3.12, 3.13. First `pybind11::array`'s strides, then `nbytes` four times in `PbTensor`.
        "a302adf6396501ac139da06f965aea1bf61929c99bf799f6b8797e071cd268f4": (
            0xAB24B,
            0xA4BFC,
            0xA4E41,
            0xA55B4,
            0xA5819,
        ),
        "41a7758c6f44520b846e90a5bf8b063f99aee01698c3e32113ce352fe8369921": (
            0xACA2B,
            0xA6C74,
            0xA6E90,
            0xA7664,
            0xA78A9,
        ),
        "7b701b4b4bc01ca7af0350eaffa4f2aed92f02b465b3494a265059e4d3ca6cf8": (
            0xACA2B,
            0xA6C74,
            0xA6E90,
            0xA7664,
            0xA78A9,
        ),
    }
)
"""By a stub's SHA-256: offsets in the file of the bytes that say where the item size is."""


def for_numpy_2(stub: bytes) -> bytes:
    """The stub, reading item sizes where NumPy 2 keeps them.

    Raises:
        StackError: the stub is not one of the known ones.
    """
    digest = hashlib.sha256(stub).hexdigest()
    places = ITEM_SIZE_READS.get(digest)
    if places is None:
        raise StackError(
            f"Triton's Python stub (sha256 {digest[:16]}…) is not known to work with NumPy 2: "
            "install what requirements.lock names (make setup)."
        )
    changed = bytearray(stub)
    for place in places:
        if changed[place] != _NUMPY_1:
            raise StackError(f"Triton's Python stub has {changed[place]:#x} at {place:#x}, not {_NUMPY_1:#x}.")
        changed[place] = _NUMPY_2
    return bytes(changed)
