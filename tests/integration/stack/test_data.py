"""What is prepared from packages is what the pipelines read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from infra.stack.assets import prepare
from infra.stack.layout import Home
from services.kit.config import home_dir

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def home() -> Home:
    home = Home(home_dir())
    prepare(home)
    return home


def test_a_second_time_nothing_is_fetched(home: Home) -> None:
    progress_calls: list[tuple[str, int, int]] = []
    prepare(home, progress=lambda name, done, total: progress_calls.append((name, done, total)))
    assert {name for name, _, _ in progress_calls} <= {"kafka"}, "Kafka's jars are counted, nothing is fetched"


def test_the_articles_are_text_with_a_headline(home: Home) -> None:
    articles = sorted((home.data / "bbc").rglob("*.txt"))
    assert Counter(path.parent.name for path in articles) == {
        "business": 510,
        "entertainment": 386,
        "politics": 417,
        "sports": 511,
        "tech": 401,
    }
    for path in articles:
        headline, _, body = path.read_text(encoding="utf-8").partition("\n")
        assert headline.strip()
        assert body.strip()


def test_the_reviews_have_text_and_a_label(home: Home) -> None:
    with (home.data / "reviews" / "reviews.jsonl").open(encoding="utf-8") as file:
        reviews = [json.loads(line) for line in file]
    assert Counter(review["label"] for review in reviews) == {"positive": 16548, "negative": 18575}
    assert all(review["text"].strip() == review["text"] != "" for review in reviews)


def test_the_entities_are_names_in_their_texts(home: Home) -> None:
    with (home.data / "entities" / "entities.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    spans = [(row["text"], span) for row in texts for span in json.loads(row["spans"])]
    assert len(texts) == 19484
    assert Counter(span["label"] for _, span in spans) == {"LOC": 27890, "PER": 20093, "ORG": 3573}
    # Family and given name are tagged apart: each time they stand together they are one name.
    joined = sum(text[span["start"] : span["end"]] == "江泽民" for text, span in spans)
    assert joined == sum(row["text"].count("江泽民") for row in texts) > 400


def test_the_messages_are_in_their_groups(home: Home) -> None:
    groups = Counter(path.parent.name for path in (home.data / "emails").rglob("*.eml"))
    assert groups == {"easy-ham-1": 2500, "easy-ham-2": 1400, "hard-ham-1": 250, "spam-1": 500, "spam-2": 1396}


def test_the_models_are_there_as_they_came(home: Home) -> None:
    def head(path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read(4)

    assert head(home.downloads / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf") == b"GGUF"
    folder = home.downloads / "bge-small-zh-v1.5"
    assert (folder / "bge-small-zh-v1.5.onnx").stat().st_size == 94851877
    assert json.loads((folder / "bge-small-zh-v1.5-tokenizer.json").read_text())["model"]["vocab"]
    assert (home.downloads / "all-minilm-l6-v2" / "model.safetensors").stat().st_size == 90868376
