"""Variants that models write: asked once each, bounded, dropped when they lose what must be kept, never forgotten."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from services.cleaning.adapters.rows import dataset_of, dataset_row
from services.cleaning.adapters.synonym_tables import FolderTables
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.augmentation import AugmentSpec, LabelFilter, SimilarityFilter
from services.cleaning.domain.dataset import Dataset, DatasetSpec, DatasetVersion, HoldoutSpec, VersionState
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.domain.record import Withdrawal
from services.cleaning.engine.augmentation import compile_augmentation
from services.cleaning.engine.registry import own_augmenters
from services.cleaning.engine.rewriter import Answer, Question, ServedModel
from services.cleaning.entrypoints.mapping import spec_from, spec_to
from services.kit import retrying
from tests.recipes import parse_operators
from tests.unit.cleaning.test_use_cases import NAME, Harness, arrival
from tests.unit.cleaning.test_use_cases import harness as harness
from tests.unit.cleaning.writer_server import WriterServer, writer_server

KEY = "TIDEMILL_AUGMENT_KEY_MESH"
BUILDING, READY, FAILED = VersionState.BUILDING, VersionState.READY, VersionState.FAILED


def text_of(number: int) -> str:
    words = ("window", "garden", "kitchen", "doctor", "engine", "river", "market", "teacher", "castle", "forest")
    return " ".join(words[number // step % 10] for step in (1, 10, 100)) + f" {number}"


@dataclass
class Bench:
    """A data set whose variants a server writes."""

    harness: Harness
    server: WriterServer
    params: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str = "paraphrase", operators: tuple[str, ...] = (), **spec: Any) -> None:
        asked = {"address": self.server.address, "model": "writer", "prompt": "{text}", **self.params}
        augment = AugmentSpec((OperatorSpec(name, asked),), **{"seed": 5, **spec})
        recipe = tuple(parse_operators(list(operators)))
        self.harness.datasets.put(NAME, DatasetSpec(("news",), recipe, HoldoutSpec(0.0), augment=augment))

    def collect(self, *texts: str, first: int = 0, **attributes: str) -> None:
        arrivals = [arrival(f"r{number:03}", text) for number, text in enumerate(texts, first)]
        self.harness.records.collect(
            [Arrival(replace(each.record, attributes=attributes), each.traceparent) for each in arrivals]
        )

    async def build(self, *, steps: int = 200) -> DatasetVersion:
        """A version, built until it ends or for some steps."""
        name = self.harness.build()
        return await self.work(name, steps=steps)

    async def work(self, name: str, *, steps: int = 200) -> DatasetVersion:
        """Lets builder and asker work on until the version ends."""
        for _ in range(steps):
            await asyncio.to_thread(self.harness.builder.step)
            if self.harness.datasets.version(name).state is not BUILDING:
                break
            await self.harness.rewriting.step()
        return self.harness.datasets.version(name)

    def rows(self, version: DatasetVersion) -> dict[str, str]:
        """Text by id of the training part."""
        assert version.snapshot is not None
        table = pq.read_table(f"{version.snapshot.uri.removeprefix('file://')}/train.parquet").to_pydict()
        return dict(zip(table["record_id"], table["text"], strict=True))

    def variants(self, version: DatasetVersion) -> dict[str, str]:
        return {name: text for name, text in self.rows(version).items() if "~" in name}


@pytest.fixture
async def bench(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.01)
    async with writer_server() as server:
        yield Bench(harness, server)


async def test_a_served_model_writes_variants_and_is_asked_once_for_each(bench: Bench) -> None:
    bench.params = {"key_env": KEY, "max_tokens": 64}
    bench.harness.secrets[KEY] = "s3cret"
    bench.put(per_record=2)
    bench.collect(*map(text_of, range(5)))
    version = await bench.build()
    assert version.state is READY
    # Both variants of a record have one text here: the second is a duplicate.
    assert bench.variants(version) == {f"r{n:03}~1": f"{text_of(n)}, said again" for n in range(5)}
    assert version.snapshot is not None
    assert version.snapshot.variants == {"paraphrase": 5}
    assert version.snapshot.dropped_variants == {"duplicate": 5}
    assert len(bench.server.asked) == 10
    body = bench.server.asked[0]
    assert (body["model"], body["max_tokens"], body["store"]) == ("writer", 64, False)
    # Each variant is drawn by another seed.
    assert len({asked["seed"] for asked in bench.server.asked}) == 10
    assert bench.server.keys == {"Bearer s3cret"}
    assert bench.server.most_at_once <= 2
    # More records: only what is new is asked.
    bench.collect(text_of(77), first=77)
    version = await bench.build()
    assert len(bench.variants(version)) == 6
    assert len(bench.server.asked) == 12


async def test_a_kill_neither_loses_nor_doubles_what_was_written(bench: Bench) -> None:
    bench.put()
    bench.collect(*map(text_of, range(6)))
    name = bench.harness.build()
    bench.server.hang_after = 2
    await bench.work(name, steps=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await bench.harness.rewriting.step()
    shown = bench.harness.datasets.version(name).progress
    assert shown is not None
    assert (shown.phase, shown.total, shown.unit) == ("augment", 6, "answers")
    assert len(bench.server.asked) == 4, "two were answered, two are under way"
    bench.server.hang_after = None
    bench.harness.restart()
    version = await bench.work(name)
    assert bench.variants(version) == {f"r{n:03}~1": f"{text_of(n)}, said again" for n in range(6)}
    assert len(bench.server.asked) == 8, "the two that were under way are asked again, and no other"


async def test_an_unavailable_model_lets_the_build_wait_and_then_fail_and_keeps_what_it_wrote(bench: Bench) -> None:
    bench.harness.patience_s = 0.05
    bench.harness.restart()
    bench.put()
    bench.collect(*map(text_of, range(4)))
    name = bench.harness.build()
    await bench.work(name, steps=1)
    bench.server.status = 503
    version = await bench.work(name)
    assert version.state is FAILED
    assert version.failure is not None
    assert version.failure.reason == "AUGMENTATION_MODEL_UNAVAILABLE"
    assert "status 503" in version.failure.message
    assert version.failure.metadata == {"reason": "AUGMENT_UNAVAILABLE"}
    assert version.snapshot is None
    asked, bench.server.status = len(bench.server.asked), 200
    version = await bench.build()
    assert len(bench.variants(version)) == 4
    assert len(bench.server.asked) == asked + 2, "two had been written before"


async def test_a_build_says_that_it_waits_for_a_model(bench: Bench) -> None:
    bench.put()
    bench.collect(text_of(1))
    name = bench.harness.build()
    await asyncio.to_thread(bench.harness.builder.step)
    bench.server.status = 503
    asking = asyncio.create_task(bench.harness.rewriting.step())
    async with asyncio.timeout(10):
        while (progress := bench.harness.datasets.version(name).progress) is None or progress.waiting is None:
            await asyncio.to_thread(bench.harness.builder.step)
    assert progress.waiting.reason == "AUGMENT_UNAVAILABLE"
    bench.server.status = 200
    await asking
    version = await bench.work(name)
    assert (version.state, len(bench.variants(version))) == (READY, 1)


async def test_a_cancelled_version_asks_no_more(bench: Bench) -> None:
    bench.put()
    bench.collect(*map(text_of, range(9)))
    name = bench.harness.build()
    await bench.work(name, steps=1)
    asked = len(bench.server.asked)
    assert asked == 2
    bench.harness.datasets.cancel(name)
    await asyncio.to_thread(bench.harness.builder.step)
    assert not await bench.harness.rewriting.step()
    assert len(bench.server.asked) == asked


@pytest.mark.parametrize(("status", "said"), [(404, "look at its address, model and key"), (401, "status 401")])
async def test_a_model_that_someone_must_see_to_fails_the_build(bench: Bench, status: int, said: str) -> None:
    bench.put()
    bench.collect(text_of(1), text_of(2))
    bench.server.status = status
    version = await bench.build()
    assert version.failure is not None
    assert version.failure.reason == "AUGMENT_REFUSES"
    assert said in version.failure.message
    assert len(bench.server.asked) <= 2


async def test_a_key_that_is_not_set_fails_the_build(bench: Bench) -> None:
    bench.params = {"key_env": KEY}
    bench.put()
    bench.collect(text_of(1))
    version = await bench.build()
    assert version.failure is not None
    assert version.failure.reason == "AUGMENT_KEY"
    assert KEY in version.failure.message
    assert bench.server.asked == []


async def test_a_placeholder_a_number_or_a_term_that_is_lost_drops_the_variant(bench: Bench) -> None:
    bench.put(keep=("myocardial infarction",))
    lost = {
        "call [PHONE] for a room": "call us for a room",
        "two guests paid 120 euros": "two guests paid 125 euros",
        "a myocardial infarction at night": "a heart attack at night",
        "write to [EMAIL] today": "write to [EMAIL] and [EMAIL] today",
        "the room was clean [PHONE]": "[PHONE] said that the room was clean",
    }
    bench.server.write = lost.__getitem__
    bench.collect(*lost)
    version = await bench.build()
    assert bench.variants(version) == {"r004~1": "[PHONE] said that the room was clean"}
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"kept_part_changed": 4}


async def test_texts_with_personal_data_that_the_recipe_left_are_not_sent(bench: Bench) -> None:
    bench.put()
    bench.collect("my number is 13812345678, call me", "the room was clean and quiet")
    version = await bench.build()
    assert bench.server.prompts == ["the room was clean and quiet"]
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"personal_data": 1}
    # Masked, it is sent with the placeholder.
    bench.put(operators=("mask_pii",))
    version = await bench.build()
    assert sorted(bench.variants(version)) == ["r000~1", "r001~1"]
    assert not any("13812345678" in prompt for prompt in bench.server.prompts)
    assert any("[PHONE]" in prompt for prompt in bench.server.prompts)


async def test_what_can_be_asked_is_bounded_and_the_same_each_time(bench: Bench) -> None:
    bench.params = {"max_calls": 3}
    bench.put()
    bench.collect(*map(text_of, range(10)))
    version = await bench.build()
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"over_max_calls": 7}
    first = bench.variants(version)
    assert (len(first), len(bench.server.asked)) == (3, 3)
    bench.harness.restart()
    bench.harness.answers.forget(NAME, list(bench.harness.answers.answers(NAME)))
    bench.put(rate=0.999999)
    assert bench.variants(await bench.build()) == first


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("finish", "length", "max_tokens"),
        ("body", b"not json", "not JSON"),
        ("body", b'{"choices": []}', "has not the expected form"),
        ("body", b'{"choices": [{"message": {"content": "a \\ud800 b"}}]}', "lone surrogate"),
        ("status", 400, "status 400"),
        ("write", lambda _: "  \n", "empty"),
    ],
)
async def test_a_model_of_which_no_answer_can_be_used_fails_the_build(
    bench: Bench, attribute: str, value: Any, said: str
) -> None:
    """Otherwise a set without variants would pass for an augmented one."""
    bench.put()
    bench.collect(text_of(1), text_of(2))
    setattr(bench.server, attribute, value)
    version = await bench.build()
    assert version.failure is not None
    assert version.failure.reason == "AUGMENTATION_UNUSABLE"
    assert said in version.failure.message
    # Once it is fixed, they are asked again.
    setattr(bench.server, attribute, getattr(WriterServer(), attribute))
    version = await bench.build()
    assert len(bench.variants(version)) == 2


async def test_an_answer_that_cannot_be_used_is_counted_by_its_reason(bench: Bench) -> None:
    bench.put()
    bench.collect("the first room", "the second room")
    bench.server.write = lambda prompt: "" if "first" in prompt else "another room"
    version = await bench.build()
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"empty": 1}


async def test_private_texts_leave_this_machine_only_where_the_file_says_so(bench: Bench) -> None:
    bench.put()
    bench.collect("a private room", data_class="private")
    assert len(bench.variants(await bench.build())) == 1
    bench.params = {"address": "http://models.invalid/v1"}
    bench.put()
    version = await bench.build()
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"private": 1}
    bench.params["private"] = True
    bench.put()
    name = bench.harness.build()
    await asyncio.to_thread(bench.harness.builder.step)
    asking = bench.harness.rewriting.of(name)
    assert asking is not None
    assert [each.prompt for each in asking.left if isinstance(each, Question)] == ["a private room"]


async def test_an_erased_record_takes_what_was_written_of_it_along(bench: Bench) -> None:
    harness = bench.harness
    augment = AugmentSpec(
        (OperatorSpec("paraphrase", {"address": bench.server.address, "model": "writer", "prompt": "{text}"}),)
    )
    spec = DatasetSpec(("answers.news",), (), HoldoutSpec(0.0), augment=augment, feedback_sources=("answers.news",))
    harness.datasets.put(NAME, spec)
    arrivals = [arrival(f"f{n}", text_of(n), source="answers.news") for n in range(3)]
    harness.records.collect(
        [Arrival(replace(each.record, attributes={"feedback_person": "p1"}), "") for each in arrivals]
    )
    name = harness.build()
    await asyncio.to_thread(harness.builder.step)
    asking = harness.rewriting.of(name)
    assert asking is not None
    questions = list(asking.left)
    await bench.work(name)
    (*_, question) = questions
    assert len(harness.answers.answers(NAME)) == 3
    harness.erasures.erase("p1", [])
    assert harness.answers.answers(NAME) == {}
    # Nor does an answer that comes late bring anything back.
    harness.answers.keep(NAME, question, Answer("what a person wrote, said again"))
    assert harness.answers.answers(NAME) == {}


async def test_what_a_changed_or_withdrawn_record_no_longer_needs_is_not_kept(bench: Bench) -> None:
    bench.put()
    bench.collect("the first room", "the second room", "the third room")
    await bench.build()
    bench.collect("the first room is new")
    gone = Withdrawal("r001", "news", "imports/b", "", arrival=10**9)
    bench.harness.records.collect([], [gone])
    await bench.build()
    written = sorted(answer.text for answer in bench.harness.answers.answers(NAME).values())
    assert written == ["the first room is new, said again", "the third room, said again"]


async def test_variants_that_drift_or_change_their_label_are_dropped(bench: Bench) -> None:
    written = {
        "the room was clean": "clean was the room",
        "the staff was good": "the staff was not good",
        "quiet garden": "zzz zzzz",
        "a river": "a river, a river",
    }
    bench.server.write = written.__getitem__
    host = bench.server.address.removesuffix("/v1")
    similarity = SimilarityFilter(bench.server.address, "encoder", 0.8)
    labels = LabelFilter(host, "models/reviews")
    bench.put(similarity=similarity, labels=labels)
    bench.collect(*list(written)[:3], label="good")
    bench.collect("a river", first=3)
    version = await bench.build()
    assert bench.variants(version) == {"r000~1": "clean was the room"}
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"drifted": 1, "label_changed": 1, "no_label": 1}
    assert len(bench.server.compared) == 4
    # One that drifted, or whose parent has no label, is not labelled.
    labelled = sorted(body["texts"][0] for body in bench.server.labelled)
    assert labelled == ["clean was the room", "the staff was not good"]
    assert {body["model"] for body in bench.server.labelled} == {"reviews"}
    bench.collect("the river was clean", first=9, label="good")
    bench.server.write = lambda prompt: f"{prompt} again"
    await bench.build()
    assert (len(bench.server.compared), len(bench.server.labelled)) == (5, 3)


async def test_words_that_change_by_themselves_are_checked_too(bench: Bench) -> None:
    similarity = SimilarityFilter(bench.server.address, "encoder", 0.999)
    augment = AugmentSpec(
        (OperatorSpec("synonym_replacement", {"groups": [["clean", "tidy"], ["big", "gib"]]}),), similarity=similarity
    )
    bench.harness.datasets.put(NAME, DatasetSpec(("news",), (), HoldoutSpec(0.0), augment=augment))
    bench.collect("a clean room", "a big room")
    version = await bench.build()
    assert bench.variants(version) == {"r001~1": "a gib room"}
    assert version.snapshot is not None
    assert version.snapshot.dropped_variants == {"drifted": 1}
    assert bench.server.asked == []


async def test_a_check_of_which_no_answer_can_be_used_fails_the_build(bench: Bench) -> None:
    bench.put(similarity=SimilarityFilter(bench.server.address, "encoder", 0.8))
    bench.collect(text_of(1), text_of(2))
    bench.server.check_status = 400
    version = await bench.build()
    assert version.failure is not None
    assert version.failure.reason == "AUGMENTATION_UNUSABLE"
    assert "the encoder that compares variants" in version.failure.message


def test_the_checks_are_part_of_the_digest_and_survive_every_form() -> None:
    checked = AugmentSpec(
        (OperatorSpec("random_deletion"),),
        similarity=SimilarityFilter("http://127.0.0.1:1/v1", "encoder", 0.8, "TIDEMILL_AUGMENT_KEY_A", True),
        labels=LabelFilter("http://127.0.0.1:1", "models/reviews", "topic"),
    )
    spec = DatasetSpec(("news",), (), augment=checked)
    assert spec_from(spec_to(spec)) == spec
    moment = datetime.now(UTC)
    row = dataset_row(Dataset(NAME, spec, "d", moment, moment))
    row["spec"] = json.loads(json.dumps(row["spec"]))
    assert dataset_of(row).spec == spec  # type: ignore[arg-type]  # a row is read like a mapping
    made = [
        compile_augmentation(own_augmenters(), each, FolderTables(Path("/nowhere")), (), AllListed()).digest
        for each in (checked, replace(checked, labels=None), replace(checked, similarity=None, labels=None))
    ]
    assert len(set(made)) == 3


class AllListed:
    """Every address may be asked."""

    def refused(self, model: ServedModel) -> str:
        return ""


def test_an_address_that_a_check_may_not_ask_is_named(harness: Harness) -> None:
    augment = AugmentSpec((OperatorSpec("random_deletion"),), labels=LabelFilter("http://10.0.0.1", "models/reviews"))
    with pytest.raises(RecipeError, match="is not in TIDEMILL_AUGMENT_HOSTS") as caught:
        harness.datasets.put(NAME, DatasetSpec(("news",), (), augment=augment))
    assert [violation.field for violation in caught.value.violations] == ["augment.labels.address"]


def paraphrase(**params: Any) -> AugmentSpec:
    given = {"address": "http://127.0.0.1:1/v1", "model": "writer", **params}
    return AugmentSpec((OperatorSpec("paraphrase", {key: value for key, value in given.items() if value != ""}),))


@pytest.mark.parametrize(
    ("augment", "name", "words"),
    [
        (paraphrase(model=""), "params.model", "Field required"),
        (paraphrase(address=""), "params.address", "Field required"),
        (paraphrase(prompt="Say it again."), "params.prompt", "must have {text}"),
        (paraphrase(address="http://10.0.0.1/v1"), "params.address", "is not in TIDEMILL_AUGMENT_HOSTS"),
        (paraphrase(address="ftp://127.0.0.1/v1"), "params.address", "begins with http://"),
        (paraphrase(address="http://u:p@127.0.0.1/v1"), "params.address", "must hold no password"),
        (paraphrase(key_env="TIDEMILL_PSEUDONYM_KEY_FILE"), "params.key_env", "should match pattern"),
        (paraphrase(max_calls=0), "params.max_calls", "greater than or equal to 1"),
        (paraphrase(temperatur=1), "params.temperatur", "did you mean 'temperature'"),
    ],
)
def test_what_is_wrong_is_named(harness: Harness, augment: AugmentSpec, name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        harness.datasets.put(NAME, DatasetSpec(("news",), (), augment=augment))
    assert [violation.field for violation in caught.value.violations] == [f"augment.operators[0].{name}"]


def test_a_preview_asks_no_model_and_names_the_augmenter(harness: Harness) -> None:
    made = harness.records.variants("a clean room", (), paraphrase())
    assert [(each.augmenter, each.text) for each in made] == [("paraphrase", "")]
