"""`mask_pii` with pseudonyms: by the key of the mesh, which is a part of what identifies the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.cleaning.adapters.pseudonym_key import read_pseudonym_key
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import default_registry
from services.kit.errors import FailedPreconditionError

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def recipe(key: bytes, **params: Any) -> CompiledRecipe:
    """A recipe of one operator."""
    return compile_recipe(default_registry(key), [OperatorSpec("mask_pii", params)])


def test_the_same_person_is_the_same_token_in_text_and_attributes() -> None:
    text = "anna@example.com asked again, Anna@example.com that is"
    cleaned = recipe(KEY, pseudonyms=True).clean(text, {"sender": "anna@example.com"})
    sender = cleaned.attributes["sender"]
    assert sender.startswith("[EMAIL-")
    assert cleaned.text == f"{sender} asked again, {sender} that is"


def test_the_key_is_a_part_of_the_recipes_digest() -> None:
    assert recipe(KEY, pseudonyms=True).digest != recipe(OTHER, pseudonyms=True).digest
    assert recipe(KEY, pseudonyms=True).digest == recipe(KEY, pseudonyms=True).digest
    # Without pseudonyms no key matters, so that recipes stay what they were where there is one.
    assert recipe(KEY).digest == recipe(b"").digest


def test_without_a_key_it_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(b"", pseudonyms=True)
    assert caught.value.violations[0].field == "operators[0].params.pseudonyms"
    assert "TIDEMILL_PSEUDONYM_KEY_FILE" in str(caught.value)


def test_a_token_without_brackets_is_refused() -> None:
    with pytest.raises(RecipeError, match="in brackets"):
        recipe(KEY, pseudonyms=True, tokens={"email": "MAIL"})
    assert recipe(KEY, tokens={"email": "MAIL"}).clean("to anna@example.com", {}).text == "to MAIL"


@pytest.mark.parametrize("content", ["", "zz", "5a" * 31, None])
def test_a_damaged_key_stops_the_service(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "pseudonyms"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(FailedPreconditionError, match="put back the file that this mesh had"):
        read_pseudonym_key(file)
    file.write_text("5a" * 32 + "\n", encoding="utf-8")
    assert read_pseudonym_key(file) == bytes.fromhex("5a" * 32)
