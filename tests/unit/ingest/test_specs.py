"""What can be wrong with a spec before its source is looked at."""

from __future__ import annotations

import pytest

from services.ingest.domain.source_import import SourceSpec, check_spec
from services.ingest.engine.formats.json_lines import JsonLines
from services.ingest.engine.formats.mail_folder import MailFolder
from services.ingest.engine.formats.text_folder import TextFolder
from services.kit.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (TextFolder("data/bbc"), "spec.text_folder.uri"),
        (TextFolder("~/bbc"), "spec.text_folder.uri"),
        (TextFolder("/x", folder_attribute="Topic"), "spec.text_folder.folder_attribute"),
        (TextFolder("/x", folder_attribute="path"), "spec.text_folder.folder_attribute"),
        (TextFolder("/x", encoding="utf-9"), "spec.text_folder.encoding"),
        (TextFolder("/x", encoding="base64"), "spec.text_folder.encoding"),
        (JsonLines("./a.jsonl"), "spec.json_lines.uri"),
        (JsonLines("/x", attribute_fields=("ok", "")), "spec.json_lines.attribute_fields[1]"),
    ],
)
def test_a_wrong_field_is_named(kind: TextFolder | JsonLines, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(SourceSpec("s", kind))
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("uri", ["/data/x", "file:///data/x", "s3://bucket/x", "https://host/x"])
def test_absolute_paths_and_urls_are_taken(uri: str) -> None:
    check_spec(SourceSpec("s", TextFolder(uri, encoding="gb18030", folder_attribute="topic")))
    check_spec(SourceSpec("s", JsonLines(uri, attribute_fields=("label",))))


def test_equal_specs_have_equal_digests() -> None:
    specs = [
        SourceSpec("s", TextFolder("/x")),
        SourceSpec("t", TextFolder("/x")),
        SourceSpec("s", TextFolder("/y")),
        SourceSpec("s", TextFolder("/x"), 5),
        SourceSpec("s", JsonLines("/x")),
        SourceSpec("s", JsonLines("/x", attribute_fields=("a", "b"))),
        SourceSpec("s", JsonLines("/x", attribute_fields=("b", "a"))),
    ]
    assert len({spec.digest for spec in specs}) == len(specs)
    assert SourceSpec("s", TextFolder("/x")).digest == specs[0].digest


def test_an_option_that_was_added_later_does_not_change_the_digest_of_specs_without_it() -> None:
    earlier = "a38ba2001538920d3ad906b9fa34bb1f58b7cf71dafff8ffcdee9334c29f49e1"
    assert SourceSpec("s", MailFolder("/x")).digest == earlier
    assert SourceSpec("s", MailFolder("/x", id_header="Message-ID")).digest != earlier
    assert SourceSpec("s", MailFolder("/x", path_pattern="(?P<label>ham)")).digest != earlier
