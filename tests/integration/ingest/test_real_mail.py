"""SpamAssassin's corpus, 6,046 messages as they came: nothing of how they were sent is in their text."""

from __future__ import annotations

import email
import re
from collections import Counter
from collections.abc import Callable, Iterable
from email.message import Message
from pathlib import Path

import pytest
import yaml

from infra.stack.assets import prepare
from infra.stack.layout import Home
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.formats.mail_folder import MailFolder
from services.kit.config import home_dir
from tests.recipes import parse_operators
from tests.sources import file_sources, pull

# Slow: its corpus comes through npm, which a machine may not have.
pytestmark = [pytest.mark.real, pytest.mark.slow]

TRANSPORT = re.compile(r"^(?:Received|Return-Path|Delivered-To|MIME-Version|Content-Transfer-Encoding|X-Mailer):", re.M)
ENCODED = re.compile(r"(?:^[A-Za-z0-9+/]{60,76}\n){3}", re.M)
ADDRESS = re.compile(r"[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}")
ARMOR = re.compile(r"^-----BEGIN PGP (?P<what>[A-Z ]+)-----$.*?^-----END PGP (?P=what)-----$", re.M | re.S)


@pytest.fixture(scope="module")
def folder() -> Path:
    prepare(Home(home_dir()), {"emails"})
    return home_dir() / "data" / "emails"


@pytest.fixture(scope="module")
def pieces(folder: Path) -> list[RawRecord | Refusal]:
    spec = SourceSpec("spam-assassin", MailFolder(str(folder), "**/*.eml", path_pattern=r"(?P<label>ham|spam)-\d/"))
    return pull(file_sources(folder), spec)


def transport_headers(text: str, message: Message) -> bool:
    return TRANSPORT.search(text) is not None


def own_boundaries(text: str, message: Message) -> bool:
    boundaries = {part.get_boundary() for part in message.walk()} - {None}
    return any(f"--{boundary}" in text for boundary in boundaries)


def own_attachments(text: str, message: Message) -> bool:
    """Whether encoded lines stand in the text, other than the keys and signatures that people write there."""
    return ENCODED.search(ARMOR.sub("", text)) is not None


def begins_like_a_part(text: str, message: Message) -> bool:
    first = text.strip().split("\n\n", 1)[0]
    return TRANSPORT.match(first) is not None or re.search(r"^--\S.*\nContent-", first, re.M) is not None


CHECKS: dict[str, Callable[[str, Message], bool]] = {
    "headers": transport_headers,
    "boundaries": own_boundaries,
    "base64": own_attachments,
    "begins": begins_like_a_part,
}


# People report spam and forward mail with its headers in their text; what they write begins before those.
QUOTING = frozenset(
    (
        *("easy-ham-1/00858", "easy-ham-1/01005", "easy-ham-1/01423", "easy-ham-1/01463", "easy-ham-1/01554"),
        *("easy-ham-1/01750", "easy-ham-2/00548", "easy-ham-2/00563", "easy-ham-2/01006", "easy-ham-2/01063"),
        *("easy-ham-2/01304", "spam-2/00692"),
    )
)


def found_in(texts: Iterable[tuple[str, str, Message]]) -> dict[str, set[str]]:
    """Messages, by group and number, in which each check finds something."""
    found: dict[str, set[str]] = {name: set() for name in CHECKS}
    for path, text, message in texts:
        for name, check in CHECKS.items():
            if check(text, message):
                found[name].add(path.partition(".")[0])
    return found


def test_each_message_is_a_record_with_its_label(pieces: list[RawRecord | Refusal]) -> None:
    records = [piece for piece in pieces if isinstance(piece, RawRecord)]
    assert Counter(record.attributes["label"] for record in records) == {"ham": 4150, "spam": 1895}
    assert len({record.record_id for record in records}) == len(records)
    (refused,) = [piece for piece in pieces if isinstance(piece, Refusal)]
    # Its text is in an attachment.
    assert (refused.reason, refused.location.rpartition("/")[2][:5]) == ("NO_MAIL_TEXT", "01306")
    assert "Message 1:" in refused.message
    assert sum(record.event_time is None for record in records) == 2


def test_no_text_has_headers_boundaries_or_encoded_attachments(folder: Path, pieces: list[RawRecord | Refusal]) -> None:
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.eml")}
    messages = {path: email.message_from_bytes(content) for path, content in contents.items()}
    raw = found_in((path, content.decode("latin-1"), messages[path]) for path, content in contents.items())
    assert len(raw["headers"]) == 6046
    assert len(raw["boundaries"]) > 400
    assert len(raw["base64"]) > 100
    records = [piece for piece in pieces if isinstance(piece, RawRecord)]
    paths = [record.attributes["path"] for record in records]
    found = found_in((path, record.text, messages[path]) for path, record in zip(paths, records, strict=True))
    assert found == {"headers": QUOTING, "boundaries": set(), "base64": set(), "begins": set()}


def test_the_recipe_of_the_pipeline_leaves_no_headers_and_no_addresses(pieces: list[RawRecord | Refusal]) -> None:
    pipeline = yaml.safe_load((Path(__file__).parents[3] / "pipelines" / "emails.yaml").read_text(encoding="utf-8"))
    recipe = compile_recipe(default_registry(), parse_operators(pipeline["dataset"]["operators"]))
    records = [piece for piece in pieces if isinstance(piece, RawRecord)]
    pairs = [
        (record.text, {name: value for name, value in record.attributes.items() if name in ("label", "subject")})
        for record in records
    ]
    kept = [
        (record.attributes["path"].partition(".")[0], verdict)
        for record, verdict in zip(records, recipe.clean_batch(pairs), strict=True)
        if verdict.rejection is None
    ]
    assert len(kept) > 5900
    # A sentence that begins like a header, and a joke about one.
    assert {path for path, each in kept if TRANSPORT.search(each.text)} == {"easy-ham-2/01018"}
    assert not [path for path, each in kept if re.search(r"^--\S.*\nContent-", each.text, re.M)]
    assert not [path for path, each in kept if ENCODED.search(each.text)]
    texts = ((path, text) for path, each in kept for text in (each.text, *each.attributes.values()))
    # A message's id in a sentence, which is not an address, and one with a line of ornaments joined to it.
    assert {path for path, text in texts if ADDRESS.search(text)} <= {"easy-ham-1/01182", "spam-2/00028"}
