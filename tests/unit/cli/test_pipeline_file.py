# ruff: noqa: E501 - the sentences that a person reads stand in one line
"""Pipeline files: every one that is shipped loads; mistakes are reported with file, line, column and field."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import MessageToDict
from tidemill.ingest.v1.source_import_pb2 import SourcePolicy
from tidemill.pipeline.v1.cycle_pb2 import PipelineSpec, Rollout
from tidemill.training.v1 import run_pb2

from gateway.cli.pipeline_file import load_pipeline, load_training
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.pipeline.app.cycle_runner import dataset_spec
from services.pipeline.entrypoints.mapping import spec_from, spec_to
from tests import shipped

PIPELINES = [path for path in shipped.PIPELINES if path.is_relative_to(shipped.ROOT / "pipelines")]

GOOD = """\
name: headlines
sources:
  - source: bbc
    text_folder: {uri: articles, folder_attribute: topic}
dataset:
  name: datasets/bbc
  operators:
    - fix_unicode
    - length_filter: {min_chars: 200, ratio: 0.5, words: [a, b], deep: {on: true, none: null}}
    - name: exact_dedup
  holdout: {fraction: 0.03}
training:
  base_model: tiny
  model_name: headlines
  generation: {prompt_template: "{text}", target_field: headline, max_input_tokens: 64, max_target_tokens: 16}
  lora: {r: 8, alpha: 16}
  optimization: {max_steps: 60, batch_size: 4, learning_rate: 1e-3, precision: fp32}
  compression: {variants: [int8]}
gate: {max_quality_loss: 0.05}
rollout: {model: models/headlines, preference: fastest}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "loop.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def wrong(path: Path) -> list[str]:
    """The lines of the error, without the file's path."""
    with pytest.raises(InvalidArgumentError) as caught:
        load_pipeline(path)
    assert caught.value.reason == "PIPELINE_FILE"
    assert all(line.startswith(f"{path}:") for line in caught.value.message.splitlines())
    return [line.removeprefix(f"{path}:").strip() for line in caught.value.message.splitlines()]


def test_there_are_pipelines() -> None:
    assert PIPELINES


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_pipeline_loads(path: Path) -> None:
    spec = load_pipeline(path).spec
    assert spec.name == path.stem
    assert all(operator.name for operator in spec.dataset.operators)


TRAINING = """\
# All weights.
base_model: tiny
model_name: headlines
generation: {prompt_template: "{text}", target_field: headline, max_input_tokens: 64, max_target_tokens: 16}
full: {}
optimization: {max_steps: 60, batch_size: 4, learning_rate: 1e-4}
compression: {variants: [int8]}
"""


def test_the_training_of_another_file_takes_the_place_of_the_pipelines_own(write: Write, tmp_path: Path) -> None:
    training = tmp_path / "full.yaml"
    training.write_text(TRAINING, encoding="utf-8")
    whole, bare = write(GOOD), GOOD[: GOOD.index("training:")] + GOOD[GOOD.index("gate:") :]
    expected = load_pipeline(whole).spec
    expected.training.CopyFrom(load_training(training).spec)
    assert load_pipeline(whole, training).spec == expected
    assert load_pipeline(write(bare), training).spec == expected
    # That of a pipeline file does, too.
    training.write_text(GOOD.replace("lora: {r: 8, alpha: 16}", "full: {}").replace("1e-3", "1e-4"), encoding="utf-8")
    assert load_pipeline(write(bare), training).spec.training.WhichOneof("method") == "full"


def test_an_error_names_the_file_that_the_training_comes_from(write: Write, tmp_path: Path) -> None:
    training = tmp_path / "full.yaml"
    training.write_text(TRAINING.replace("max_steps", "steps"), encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=rf"^{re.escape(str(training))}:6:16: optimization: unknown field"):
        load_pipeline(write(GOOD), training)
    training.write_text(TRAINING, encoding="utf-8")
    file = load_pipeline(write(GOOD), training)
    wrong = [FieldViolation(f"spec.{name}", "is wrong") for name in ("training.full", "training.lora.r", "gate")]
    said = file.locate(InvalidArgumentError("No.", violations=wrong)).message.splitlines()
    line = 1 + GOOD[: GOOD.index("gate:")].count("\n")
    assert said == [
        f"{training}:5:1: training.full: is wrong",
        f"{training}:1:1: training.lora.r: is wrong",
        f"{file.path}:{line}:1: gate: is wrong",
    ]


def test_a_rule_over_pipeline_and_training_holds_for_the_training_of_another_file(write: Write, tmp_path: Path) -> None:
    training = tmp_path / "marks.yaml"
    task = "token_classification: {spans_field: spans, max_input_tokens: 64}"
    training.write_text(re.sub("(?m)^generation: .*$", task, TRAINING), encoding="utf-8")
    augmented = GOOD.replace("  holdout:", "  augment: {operators: [{synonyms: {tables: [wordnet]}}]}\n  holdout:")
    load_pipeline(write(GOOD), training)
    with pytest.raises(InvalidArgumentError, match="augment changes texts"):
        load_pipeline(write(augmented), training)


def test_short_forms(write: Write, tmp_path: Path) -> None:
    spec = load_pipeline(write(GOOD)).spec
    assert [operator.name for operator in spec.dataset.operators] == ["fix_unicode", "length_filter", "exact_dedup"]
    params = MessageToDict(spec.dataset.operators[1].params)
    assert params == {"min_chars": 200, "ratio": 0.5, "words": ["a", "b"], "deep": {"on": True, "none": None}}
    assert spec.rollout.preference == Rollout.PREFERENCE_FASTEST
    assert spec.training.optimization.precision == run_pb2.PRECISION_FP32
    assert spec.training.optimization.learning_rate == 0.001
    assert spec.sources[0].text_folder.uri == str(tmp_path / "articles")


@pytest.mark.parametrize("uri", ["/data/bbc", "s3://bucket/bbc", "file:///data/bbc"])
def test_other_sources_stay_as_they_are(write: Write, uri: str) -> None:
    spec = load_pipeline(write(GOOD.replace("uri: articles", f'uri: "{uri}"'))).spec
    assert spec.sources[0].text_folder.uri == uri


def test_the_long_form_of_an_enum(write: Write) -> None:
    spec = load_pipeline(write(GOOD.replace("preference: fastest", "preference: PREFERENCE_SMALLEST"))).spec
    assert spec.rollout.preference == Rollout.PREFERENCE_SMALLEST


def test_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_NAME", "mine")
    monkeypatch.setenv("LOOP_STEPS", "7")
    text = GOOD.replace("name: headlines\nsources", "name: ${LOOP_NAME}\nsources")
    text = text.replace("max_steps: 60", 'max_steps: "${LOOP_STEPS}"').replace(
        "batch_size: 4", 'batch_size: "${SIZE:-2}"'
    )
    spec = load_pipeline(write(text)).spec
    assert (spec.name, spec.training.optimization.max_steps, spec.training.optimization.batch_size) == ("mine", 7, 2)


def test_fetched_data_is_known_by_a_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEMILL_DATA", raising=False)
    monkeypatch.setenv("TIDEMILL_HOME", "/somewhere")
    spec = load_pipeline(write(GOOD.replace("uri: articles", 'uri: "${TIDEMILL_DATA}/bbc"'))).spec
    assert spec.sources[0].text_folder.uri == "/somewhere/data/bbc"


def test_anchors_and_merge_keys(write: Write) -> None:
    text = GOOD.replace("gate: {max_quality_loss: 0.05}", "gate:\n  <<: {max_quality_loss: 0.5}\n")
    assert load_pipeline(write(text)).spec.gate.max_quality_loss == 0.5


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("batch_size: 4", "batchsize: 4", "17:33: training.optimization: unknown field 'batchsize'; did you mean 'batch_size'?"),
        ("fastest", "fastestt", "20:48: rollout.preference: 'fastestt' is not a valid value; did you mean 'fastest'?"),
        ("fastest", "cheap", "20:48: rollout.preference: 'cheap' is not a valid value; choose from fastest, smallest, best_quality."),
        ("max_steps: 60", "max_steps: sixty", "17:29: training.optimization.max_steps: expected a number, found 'sixty'."),
        ("max_steps: 60", "max_steps: 6.5", "17:29: training.optimization.max_steps: expected a whole number, found '6.5'."),
        ("max_steps: 60", "max_steps: 3000000000", "17:29: training.optimization.max_steps: 3000000000 is out of range."),
        ("alpha: 16", "alpha: [16]", "16:23: training.lora.alpha: expected a single value, found a list."),
        ("alpha: 16", "alpha: much", "16:23: training.lora.alpha: expected a number, found text."),
        ("base_model: tiny", "base_model: 7", "13:15: training.base_model: expected text, found a number; write it in quotes."),
        ("variants: [int8]", "variants: int8", "18:27: training.compression.variants: expected a list, found text."),
        ("variants: [int8]", "variants: [int8], students: [{layer: 2}]",
            "18:47: training.compression.students[0]: unknown field 'layer'; did you mean 'layers'?"),
        ("- fix_unicode", "- [fix_unicode]", "8:7: dataset.operators[0]: expected a mapping with name, params, found a list."),
        ("gate: {max", "gate: {<<: {}, 1: 2, max", "19:16: gate: unknown field '1'; choose from max_quality_loss, min_gain_over_base, min_quality, "
            "max_loss_to_champion, min_quality_on_corrections, min_gain_on_corrections, max_slice_loss_to_champion."),
        ("name: headlines\nsources", "name: ${NOT_SET}\nsources", "1:7: name: the variable NOT_SET is not set; set it, or write ${NOT_SET:-default}."),
        ("  lora:", "  full: {}\n  lora:", "17:9: training.lora: cannot be combined with 'full'; give one of the two."),
        ("gate:", "name: again\ngate:", "19:1: name: is given twice; the first is in line 1."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported_at_its_place(write: Write, old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    assert wrong(write(GOOD.replace(old, new, 1))) == [sentence]


def test_all_mistakes_are_reported_at_once(write: Write) -> None:
    text = GOOD.replace("batch_size", "batchsize").replace("fastest", "cheap")
    assert [line.split(":")[0] for line in wrong(write(text))] == ["17", "20"]


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("learning_rate: 1e-3", "learning_rate: 7", "17:48: training.optimization.learning_rate: "),
        ("fraction: 0.03", "fraction: 2", "11:13: dataset.holdout.fraction: "),
        ("- fix_unicode", "- Fix-Unicode", "8:7: dataset.operators[0].name: "),
        ("source: bbc", "source: BBC", "3:5: sources[0].source: "),
        ("gate: {max_quality_loss: 0.05}\n", "", "gate: "),
        (
            "variants: [int8]",
            "variants: [int8], students: [{layers: 2}]",
            "12:1: training: compression.students are for ",
        ),
        ("  lora: {r: 8, alpha: 16}\n", "", "12:1: training.method: "),
    ],
)
def test_the_contracts_rules_are_reported_at_their_place(write: Write, old: str, new: str, start: str) -> None:
    lines = wrong(write(GOOD.replace(old, new, 1)))
    assert len(lines) == 1
    assert lines[0].startswith(start), lines[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; copy pipelines/headlines.yaml to begin."),
        ("# nothing\n", "is empty; copy pipelines/headlines.yaml to begin."),
        ("name: [a\n", "2:1: not valid YAML: expected ',' or ']', but got '<stream end>'."),
        ("a: b: c\n", "1:5: not valid YAML: mapping values are not allowed here."),
    ],
)
def test_a_file_that_is_not_a_pipeline(write: Write, text: str, sentence: str) -> None:
    assert wrong(write(text)) == [sentence]


def test_a_list_is_not_a_pipeline(write: Write) -> None:
    assert wrong(write("- a\n"))[0].startswith("1:1: expected a mapping with name, sources, dataset")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert wrong(tmp_path / "none.yaml") == ["this file does not exist."]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: é".encode("latin-1"))
    assert wrong(latin) == ["not UTF-8 (byte 6); save the file as UTF-8."]
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load_pipeline(tmp_path)


def test_what_a_service_refuses_is_reported_at_the_files_line(write: Write) -> None:
    file = load_pipeline(write(GOOD))
    field = "spec.dataset.operators[1].params.min_chars"
    located = file.locate(InvalidArgumentError("no", violations=[FieldViolation(field, "must be positive")]))
    assert located.message == f"{file.path}:9:23: dataset.operators[1].params.min_chars: must be positive"
    plain = InvalidArgumentError("no field")
    assert file.locate(plain) is plain


AUGMENT = """\
  augment:
    seed: 7
    rate: 0.5
    operators:
      - synonym_replacement: {tables: [cilin], rate: 0.2}
      - random_swap
training:"""


def test_augmentation(write: Write) -> None:
    file = load_pipeline(write(GOOD.replace("training:", AUGMENT)))
    augment = file.spec.dataset.augment
    assert (augment.seed, augment.rate, augment.per_record) == (7, 0.5, 0)
    assert [each.name for each in augment.operators] == ["synonym_replacement", "random_swap"]
    field = "dataset.augment.operators[0].params.tables[0]"
    located = file.locate(InvalidArgumentError("no", violations=[FieldViolation(field, "is not there")]))
    assert located.message == f"{file.path}:16:40: {field}: is not there"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate: 0.5", "rate: 1.5", "14:5: dataset.augment.rate: "),
        ("seed: 7", "per_record: 17", "13:5: dataset.augment.per_record: "),
        ("seed: 7", "sede: 7", "13:5: dataset.augment: unknown field 'sede'; did you mean 'seed'?"),
    ],
)
def test_a_wrong_augmentation_is_reported_at_its_place(write: Write, old: str, new: str, said: str) -> None:
    (line,) = wrong(write(GOOD.replace("training:", AUGMENT.replace(old, new))))
    assert line.startswith(said)


def test_spans_are_not_augmented(write: Write) -> None:
    text = (Path(__file__).parents[3] / "pipelines" / "entities.yaml").read_text(encoding="utf-8")
    augmented = re.sub(r"^training:", "  augment: {operators: [random_swap]}\ntraining:", text, flags=re.MULTILINE)
    (line,) = wrong(write(augmented))
    assert "offsets of token_classification's spans" in line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gate:", "capture: {}\ngate:", "the embeddings of training.text_embedding are none"),
        ("preference: fastest", "canary: {}", "those of two cannot be compared"),
        ("batch_size: 32", "batch_size: 1", "text_embedding needs 2 or more"),
        ("compression: {", "strategy: ddp\n  processes: 2\n  compression: {", "text_embedding has single only"),
        ("[fp32, int8]}", "[fp32], students: [{layers: 2}]}", "for classification only"),
        ("positive_field: headline", "positive_field: text", "two columns other than text"),
        ("dimensions: [128]", "dimensions: [0]", "dimensions[0]"),
    ],
)
def test_what_embeddings_do_not_have_is_refused_with_the_field(write: Write, old: str, new: str, said: str) -> None:
    text = (Path(__file__).parents[3] / "pipelines" / "search.yaml").read_text(encoding="utf-8")
    assert load_pipeline(write(text)).spec.training.text_embedding.positive_field == "headline"
    assert old in text
    assert said in "\n".join(wrong(write(text.replace(old, new))))


def test_a_written_spec_comes_back(write: Write) -> None:
    spec = load_pipeline(write(GOOD)).spec
    again = write(yaml.safe_dump(MessageToDict(spec, preserving_proto_field_name=True)))
    assert load_pipeline(again).spec == spec
    assert isinstance(spec, PipelineSpec)


LEARNS = """\
capture: {sample: 0.5, masks: [mask_pii, {mask_pii: {kinds: [url]}}], keep_days: 7}
feedback: {corrections: {weight: 3}, accepted: {weight: 1}, per_person_cap: 20}
"""


def test_originals_and_tenants(write: Write) -> None:
    policy = "    policy: {data_class: private, originals: none, tenant: acme}\n"
    text = GOOD.replace("dataset:\n", f"{policy}dataset:\n  tenants: [acme, globex]\n")
    spec = load_pipeline(write(text)).spec
    assert spec.sources[0].policy == SourcePolicy(
        data_class=SourcePolicy.DATA_CLASS_PRIVATE, originals=SourcePolicy.ORIGINALS_NONE, tenant="acme"
    )
    # The cycle passes them on to cleaning and ingest.
    assert dataset_spec(spec_from(spec))["tenants"] == ["acme", "globex"]
    assert spec_to(spec_from(spec)) == spec
    with pytest.raises(InvalidArgumentError, match="secret"):
        load_pipeline(write(text.replace("originals: none", "originals: secret")))


def test_capture_and_feedback(write: Write) -> None:
    spec = load_pipeline(write(GOOD + LEARNS)).spec
    assert (spec.capture.sample, spec.capture.keep_days) == (0.5, 7)
    assert [mask.name for mask in spec.capture.masks] == ["mask_pii", "mask_pii"]
    assert MessageToDict(spec.capture.masks[1].params) == {"kinds": ["url"]}
    assert (spec.feedback.corrections.weight, spec.feedback.accepted.weight, spec.feedback.per_person_cap) == (3, 1, 20)
    assert load_pipeline(write(GOOD + "capture: {}\n")).spec.HasField("capture")
    assert not load_pipeline(write(GOOD)).spec.HasField("capture")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{}", (20, 3)),
        ("{new_labels: {min_records: 50}}", (50, 3)),
        ("{new_labels: {min_people: 5}}", (20, 5)),
        ("{new_labels: {never: true}}", None),
    ],
)
def test_when_a_label_becomes_a_class_reaches_the_data_set(
    write: Write, written: str, expected: tuple[int, int] | None
) -> None:
    spec = spec_from(load_pipeline(write(GOOD + f"capture: {{}}\nfeedback: {written}\n")).spec)
    assert spec_from(spec_to(spec)) == spec
    found = dataset_spec(spec).get("new_labels")
    assert found == (None if expected is None else {"min_records": expected[0], "min_people": expected[1]})


def test_feedback_needs_capture(write: Write) -> None:
    (sentence,) = wrong(write(GOOD + LEARNS.splitlines()[1] + "\n"))
    assert "feedback needs capture" in sentence


def test_answers_with_several_labels_are_not_captured(write: Write) -> None:
    writes = next(line for line in GOOD.splitlines() if line.startswith("  generation:"))
    several = GOOD.replace(writes, "  multi_label_classification: {labels_field: topics, max_input_tokens: 64}")
    assert load_pipeline(write(several)).spec.training.multi_label_classification.labels_field == "topics"
    (sentence,) = wrong(write(several + "capture: {}\n"))
    assert "multi_label_classification are not captured yet" in sentence


TRIGGERS = """\
triggers:
  new_records: 500
  schedule: 0 3 * * MON
  time_zone: Europe/Berlin
  max_cycles_per_day: 0
  quiet_hours: [{start: "22:00", end: "06:00"}]
"""


def test_triggers(write: Write) -> None:
    found = load_pipeline(write(GOOD + TRIGGERS)).spec.triggers
    assert (found.new_records, found.schedule, found.time_zone) == (500, "0 3 * * MON", "Europe/Berlin")
    assert (found.HasField("debounce_minutes"), found.max_cycles_per_day) == (False, 0)
    assert found.HasField("max_cycles_per_day")
    assert (found.quiet_hours[0].start, found.quiet_hours[0].end) == ("22:00", "06:00")


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("{}", "give at least one of new_records, corrections, schedule, drift and alerts"),
        ("{corrections: 5}", "triggers.corrections needs feedback"),
        ("{new_records: 1, quiet_hours: [{start: '24:00', end: '06:00'}]}", "triggers.quiet_hours[0].start"),
    ],
)
def test_triggers_that_could_never_start_a_cycle_are_refused(write: Write, rules: str, said: str) -> None:
    assert said in " ".join(wrong(write(f"{GOOD}triggers: {rules}\n")))
