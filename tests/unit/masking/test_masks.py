from __future__ import annotations

from typing import Any

import pytest

from services.kit.errors import InvalidArgumentError
from services.masking.masks import MaskSpec, mask_of


def test_without_a_mask_named_personal_data_is_masked() -> None:
    assert mask_of([])("write to jane@example.org") == "write to [EMAIL]"


def test_a_mask_takes_kinds_and_tokens() -> None:
    mask = mask_of([MaskSpec("mask_pii", {"kinds": ["email"], "tokens": {"email": "<mail>"}})])
    assert mask("jane@example.org, 手机13812345678") == "<mail>, 手机13812345678"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (MaskSpec("mask_names"), "capture.masks[0].name"),
        (MaskSpec("mask_pii", {"kind": ["email"]}), "capture.masks[0].params.kind"),
        (MaskSpec("mask_pii", {"kinds": ["mail"]}), "capture.masks[0].params.kinds"),
        (MaskSpec("mask_pii", {"kinds": []}), "capture.masks[0].params.kinds"),
        (MaskSpec("mask_pii", {"tokens": {"name": "X"}}), "capture.masks[0].params.tokens"),
        (MaskSpec("mask_pii", {"tokens": {"email": 1}}), "capture.masks[0].params.tokens"),
    ],
)
def test_a_wrong_mask_is_named(spec: Any, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        mask_of([spec], "capture.masks")
    assert [violation.field for violation in caught.value.violations] == [field]
