"""Back-translation by models of this machine, and through a served language model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.cleaning.domain.augmentation import AugmentSpec
from services.cleaning.domain.dataset import DatasetSpec
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.augmenter import Translator
from services.cleaning.engine.rewriter import Question
from services.kit import retrying
from services.kit.errors import UnavailableError
from tests.unit.cleaning.test_rewriting import Bench
from tests.unit.cleaning.test_use_cases import NAME, Harness
from tests.unit.cleaning.test_use_cases import harness as harness
from tests.unit.cleaning.toy_translator import make_translator, translation
from tests.unit.cleaning.writer_server import WriterServer, writer_server
from tests.waiting import wait_until

WORDS = ("the", "room", "was", "clean", "and", "quiet", "garden", "window", "staff", "friendly", "river", "market")
TEXTS = ("the room was clean", "friendly staff and quiet garden", "the market and the river")
TOKENS = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models that translate."""
    folder = tmp_path_factory.mktemp("models")
    make_translator(folder / "zh-en", WORDS, 1)
    make_translator(folder / "en-zh", WORDS, 2)
    return folder


@pytest.fixture
async def bench(harness: Harness, models: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.01)
    harness.folder.mkdir(exist_ok=True)
    (harness.folder / "data").symlink_to(models)
    bench = Bench(harness, WriterServer())
    yield bench
    harness.translators.close()


def put(harness: Harness, **params: Any) -> None:
    augment = AugmentSpec((OperatorSpec("back_translation", params),), seed=5)
    harness.datasets.put(NAME, DatasetSpec(("news",), (), augment=augment))


async def test_texts_go_there_and_back_through_models_of_this_machine(bench: Bench, models: Path) -> None:
    """Their weights are random, so what comes back means nothing; it is what these very models make of the text."""
    put(bench.harness, there="zh-en", back="en-zh", max_tokens=TOKENS, temperature=0)
    bench.collect(*TEXTS)
    version = await bench.build()
    there, back = translation(models / "zh-en", TOKENS), translation(models / "en-zh", TOKENS)
    expected = {f"r{number:03}~1": back(there(text)) for number, text in enumerate(TEXTS)}
    assert all(expected.values())
    found = bench.variants(version)
    assert found
    assert found.items() <= expected.items()
    # Equal texts are dropped as duplicates, and nothing else is.
    assert sorted(set(found.values())) == sorted(set(expected.values()) - set(TEXTS))


async def test_a_process_that_is_killed_is_started_again(bench: Bench, models: Path) -> None:
    translators = bench.harness.translators
    question = Question(Translator(str(models / "zh-en"), "d"), TEXTS[0], TOKENS, 0, 5, ("news", "r"), 1)
    first = await translators.ask(question)
    assert translators.process_id is not None
    os.kill(translators.process_id, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="ended \\(-9\\)"):
        await translators.ask(question)
    # Which the build retries.
    assert await translators.ask(question) == first


async def test_the_process_gives_its_memory_back_when_nothing_is_asked(harness: Harness, models: Path) -> None:
    harness.idle_s = 0.05
    harness.restart()
    model = Translator(str(models / "zh-en"), "d")
    await harness.translators.ask(Question(model, TEXTS[0], TOKENS, 0.7, 5, ("news", "r"), 1))
    await asyncio.to_thread(wait_until, lambda: harness.translators.process_id is None)


async def test_a_model_that_cannot_be_loaded_fails_the_build_and_is_named(bench: Bench, tmp_path: Path) -> None:
    data = bench.harness.folder / "data"
    data.unlink()
    for name in ("zh-en", "en-zh"):
        make_translator(data / name, WORDS, 1)
    (data / "zh-en" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    put(bench.harness, there="zh-en", back="en-zh")
    bench.collect(*TEXTS)
    version = await bench.build()
    assert version.failure is not None
    assert version.failure.reason == "AUGMENT_TRANSLATOR"
    assert "zh-en cannot be loaded" in version.failure.message


async def test_a_served_model_translates_there_and_back(harness: Harness) -> None:
    def write(prompt: str) -> str:
        head, _, text = prompt.partition("\n\n")
        return f"{text} en" if "into English" in head else f"{text} zh"

    async with writer_server() as server:
        bench = Bench(harness, server)
        server.write = write
        served = {"address": server.address, "model": "writer", "language": "Chinese", "through": "English"}
        put(harness, **served, max_calls=5)
        bench.collect(*TEXTS)
        version = await bench.build()
        assert version.snapshot is not None
        # Two calls for each of two variants; five allow no third.
        assert version.snapshot.dropped_variants == {"over_max_calls": 1}
        assert len(server.asked) == 4
        made = bench.variants(version)
        assert len(made) == 2
        assert {text.removesuffix(" en zh") for text in made.values()} < set(TEXTS)


async def test_a_model_that_never_translates_back_fails_the_build(harness: Harness) -> None:
    async with writer_server() as server:
        bench = Bench(harness, server)
        server.write = lambda prompt: "there" if "into English" in prompt else ""
        put(harness, address=server.address, model="writer", language="Chinese", through="English")
        bench.collect(*TEXTS)
        version = await bench.build()
        assert version.failure is not None
        assert version.failure.reason == "AUGMENTATION_UNUSABLE"
        assert "the models that translate back" in version.failure.message


SERVED = {"address": "http://127.0.0.1:1/v1", "model": "m", "language": "Chinese", "through": "English"}


@pytest.mark.parametrize(
    ("params", "field", "words"),
    [
        ({}, "there", "is missing: give there and back, or address, model, language and through"),
        ({"there": "zh-en"}, "back", "is missing"),
        ({"there": "zh-en", "back": "zh-de"}, "back", "there are: en-zh, pickled, plain, writer, zh-en"),
        ({"there": "../zh-en", "back": "en-zh"}, "there", "not a valid name of a folder"),
        ({"there": "pickled", "back": "en-zh"}, "there", "can run code and are not loaded"),
        ({"there": "plain", "back": "en-zh"}, "there", "has no *.safetensors files"),
        ({"there": "writer", "back": "en-zh"}, "there", "is not a seq2seq model"),
        ({**SERVED, "there": "zh-en"}, "there", "goes with there and back only"),
        ({**SERVED, "through": ""}, "through", "is missing"),
        ({**SERVED, "address": "http://10.0.0.1/v1"}, "address", "is not in TIDEMILL_AUGMENT_HOSTS"),
        ({**SERVED, "max_calls": 1}, "max_calls", "greater than or equal to 2"),
    ],
)
def test_what_is_wrong_is_named(harness: Harness, params: dict[str, Any], field: str, words: str) -> None:
    data = harness.folder / "data"
    for name in ("zh-en", "en-zh", "pickled", "plain", "writer"):
        (data / name).mkdir(parents=True)
        (data / name / "config.json").write_text(json.dumps({"is_encoder_decoder": name != "writer"}))
    for name in ("zh-en", "en-zh", "writer"):
        (data / name / "model.safetensors").write_bytes(b"")
    (data / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        put(harness, **params)
    assert [violation.field for violation in caught.value.violations] == [f"augment.operators[0].params.{field}"]


def test_another_model_in_the_folder_is_another_data_set(harness: Harness) -> None:
    data = harness.folder / "data"
    for name in ("zh-en", "en-zh"):
        (data / name).mkdir(parents=True)
        (data / name / "config.json").write_text('{"is_encoder_decoder": true}')
        (data / name / "model.safetensors").write_bytes(b"one")
    spec = DatasetSpec(("news",), (), augment=AugmentSpec((OperatorSpec("back_translation", _FOLDERS),)))
    before = harness.recipes.augmentation(spec)
    (data / "zh-en" / "model.safetensors").write_bytes(b"other")
    after = harness.recipes.augmentation(spec)
    assert before is not None
    assert after is not None
    assert before.digest != after.digest


_FOLDERS = {"there": "zh-en", "back": "en-zh"}
