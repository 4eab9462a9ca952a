"""`tidemill predict`, `generate`, `models`, `feedback`: using published models."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from tidemill.inference.v1.inference_service_pb2 import (
    GenerateRequest,
    ListModelsRequest,
    ListModelVersionsRequest,
    PredictRequest,
    PredictResponse,
    StreamGenerateRequest,
)
from tidemill.inference.v1.model_pb2 import ChatMessage, Model, ModelVersion, SamplingParams
from tidemill.pipeline.v1.pipeline_service_pb2 import RecordFeedbackRequest

from gateway.cli.bulk import Row, run_bulk
from gateway.cli.connection import Connection, connect
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_json_line,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.resource_names import model_name
from gateway.cli.views.text import moment
from gateway.formats import rate, size
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError
from services.kit.ids import new_id

ModelName = Annotated[str, typer.Argument(help="Name of a model; `tidemill models` lists them.", show_default=False)]
InOption = Annotated[
    Path | None,
    typer.Option("--in", help="JSON lines with `text` and, if wanted, `id`; answers go to --out.", show_default=False),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", help="JSON lines, one for each of --in; a file that exists is continued.", show_default=False
    ),
]
_BATCH = 256
# Texts per request, and concurrent requests, of a file: enough for batching, few enough to leave room for others.
_BULK_BATCH, _AT_ONCE = 64, 4
_RATINGS = {"good": 1.0, "bad": -1.0}


def _text(text: str | None, file: Path | None) -> str:
    """The text of a command: its argument, a file, or standard input for `-`."""
    if (text is None) == (file is None):
        raise InvalidArgumentError("Give either a text or --file; use - to read standard input.")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"The file {file} cannot be read: {error}") from error
    return sys.stdin.read() if text == "-" else str(text)


def predict(
    model: ModelName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to classify; - reads lines from standard input.", show_default=False),
    ] = None,
    source: InOption = None,
    target: OutOption = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Classifies texts."""
    if files := _files(source, target, bool(texts)):
        with connect(address) as connection:
            run_bulk(*files, lambda rows: _predicted(connection, model, rows), batch=_BULK_BATCH, at_once=_AT_ONCE)
        return
    if not texts:
        raise InvalidArgumentError("Give texts, - for standard input, or --in and --out.")
    # Only a line feed ends a line: a text may contain the other characters at which Python's `splitlines` splits.
    lines = sys.stdin.read().removesuffix("\n").split("\n") if texts == ["-"] else texts
    asked = [line for line in lines if line.strip()]
    if not asked:
        raise InvalidArgumentError("No text to classify: standard input is empty.")
    response = PredictResponse()
    with connect(address) as connection:
        # As many as one request may hold; a file piped in may have more lines.
        for at in range(0, len(asked), _BATCH):
            request = PredictRequest(model=model_name(model), texts=asked[at : at + _BATCH])
            response.MergeFrom(connection.inference.Predict(request, metadata=connection.metadata, timeout=60))
    # A blank line has no answer, but keeps its place in the output.
    predictions = iter(response.predictions)
    rows = [(line, next(predictions) if line.strip() else None) for line in lines]
    if json_wanted:
        shown = [as_json(prediction) if prediction is not None else None for _, prediction in rows]
        print_json(as_json(response) | {"predictions": shown, "trace_id": connection.trace_id})
        return
    table = plain_table()
    # In a narrow terminal the text is cut: the user knows it, and feedback needs the answer's id.
    table.add_column("label", style="bold", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("text")
    table.add_column("answer", style="bright_black", no_wrap=True)
    for line, prediction in rows:
        if prediction is None:
            table.add_row()
            continue
        text = Text(" ".join(line.split()), no_wrap=True, overflow="ellipsis")
        score = f"{prediction.score:.3f}" if prediction.label else ""
        table.add_row(prediction.label, score, text, prediction.answer)
        for label in prediction.labels:
            table.add_row(label, f"{prediction.scores[label]:.3f}")
        for span in prediction.spans:
            table.add_row(span.label, f"{span.score:.3f}", Text(line[span.start : span.end]))
    print_whole(table)
    stderr().print(f"{response.model_version} · trace {connection.trace_id}", style="bright_black", markup=False)


def _files(source: Path | None, target: Path | None, has_text: bool) -> tuple[Path, Path] | None:
    if source is None and target is None:
        return None
    if source is None or target is None or has_text:
        raise InvalidArgumentError("--in and --out go together, and without a text.")
    return source, target


def _predicted(connection: Connection, model: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    request = PredictRequest(model=model_name(model), texts=[row.text for row in rows])
    response = connection.inference.Predict(request, metadata=_later(connection), timeout=120)
    version = {"model_version": response.model_version}
    return [as_json(prediction) | version for prediction in response.predictions]


def generate(
    model: ModelName,
    text: Annotated[str | None, typer.Argument(help="Input text; - reads standard input.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Reads the text from a file.")] = None,
    chat: Annotated[
        bool, typer.Option(help="Send the text as a chat message, without the model's prompt template.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens to generate; 0 for the model's limit.", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="0 always chooses the most probable token.", min=0, max=2)] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Samples from the smallest set of tokens with this total probability.", min=0, max=1)
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.", show_default=False)] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the answer is valid against.", show_default=False)
    ] = None,
    source: InOption = None,
    target: OutOption = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Generates an answer and prints it as it arrives."""
    if top_p == 0:
        raise InvalidArgumentError("--top-p must be greater than 0; use --temperature 0 for the most probable token.")
    schema = "" if json_schema is None else _text(None, json_schema)
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, json_schema=schema
    )
    if files := _files(source, target, text is not None or file is not None):
        with connect(address) as connection:
            run_bulk(
                *files, lambda rows: _generated(connection, model, rows, sampling, chat), batch=1, at_once=_AT_ONCE
            )
        return
    given = _text(text, file)
    request = StreamGenerateRequest(model=model_name(model), sampling=sampling)
    if chat:
        request.conversation.messages.append(ChatMessage(role="user", content=given))
    else:
        request.text = given
    with connect(address) as connection:
        _stream(connection, request, json_wanted)


def _generated(
    connection: Connection, model: str, rows: Sequence[Row], sampling: SamplingParams, chat: bool
) -> list[dict[str, Any]]:
    [row] = rows
    request = GenerateRequest(model=model_name(model), sampling=sampling)
    if chat:
        request.conversation.messages.append(ChatMessage(role="user", content=row.text))
    else:
        request.text = row.text
    return [as_json(connection.inference.Generate(request, metadata=_later(connection), timeout=600))]


def _later(connection: Connection) -> tuple[tuple[str, str], ...]:
    """Metadata of a request for which no one waits."""
    return (*connection.metadata, ("x-service-tier", "flex"))


def _stream(connection: Connection, request: StreamGenerateRequest, json_wanted: bool) -> None:
    started = time.perf_counter()
    first_s: float | None = None
    call = connection.inference.StreamGenerate(request, metadata=connection.metadata, timeout=600)
    piece = None
    try:
        for piece in call:
            first_s = first_s or time.perf_counter() - started
            if json_wanted:
                print_json_line(as_json(piece))
            else:
                sys.stdout.write(piece.text_delta)
                sys.stdout.flush()
    except KeyboardInterrupt:
        call.cancel()
        raise
    if piece is None or json_wanted:
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    seconds = time.perf_counter() - started
    written = piece.usage.completion_tokens
    speed = (
        f", {rate((written - 1) / (seconds - (first_s or 0)))} tokens/s"
        if written > 1 and seconds > (first_s or 0)
        else ""
    )
    stderr().print(
        f"{piece.answer} · {piece.model_version} · {written} tokens{speed}, first after {(first_s or 0) * 1000:.0f} ms"
        f" · trace {connection.trace_id}",
        style="bright_black",
        markup=False,
        soft_wrap=True,
    )


def models(
    model: Annotated[str, typer.Argument(help="Show the versions of this model.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists the models, or one model's versions."""
    with connect(address) as connection:
        if model:
            _show_versions(_versions(connection, model_name(model)), json_wanted)
        else:
            _show_models(_models(connection), json_wanted)


def _models(connection: Connection) -> list[Model]:
    listed = pages(connection, connection.inference.ListModels, ListModelsRequest(page_size=1000))
    return [item for page in listed for item in page.models]


def _versions(connection: Connection, name: str) -> list[ModelVersion]:
    request = ListModelVersionsRequest(model=name, page_size=1000)
    found = connection.inference.ListModelVersions(request, metadata=connection.metadata, timeout=30).model_versions
    if not found:
        raise NotFoundError(f"The model {name.removeprefix('models/')} does not exist; `tidemill models` lists all.")
    return list(found)


def _table(*columns: str) -> Table:
    table = plain_table()
    for column in columns:
        long = column in ("labels", "note", "data", "run")
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold", no_wrap=not long)
    return table


def _show_models(found: list[Model], json_wanted: bool) -> None:
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = _table("model", "serves", "task", "build", "size", "labels")
    for item in found:
        serving = item.serving
        serves = item.HasField("serving")
        table.add_row(
            item.name.removeprefix("models/"),
            f"version {serving.name.rpartition('/')[2]}" if serves else "nothing",
            serving.task.replace("_", " "),
            serving.precision,
            size(serving.size_bytes) if serves else "",
            ", ".join(item.labels),
        )
    if found:
        print_whole(table)
    else:
        stdout().print("No model is published yet; `tidemill run pipelines/headlines.yaml` creates one.")


def _show_versions(found: list[ModelVersion], json_wanted: bool) -> None:
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = _table("version", "state", "build", "size", "published", "run", "data", "note")
    for item in found:
        table.add_row(
            item.name.rpartition("/")[2],
            ModelVersion.State.Name(item.state).removeprefix("STATE_").lower(),
            item.precision,
            size(item.size_bytes),
            f"{moment(item.create_time):%Y-%m-%d %H:%M}",
            item.run.removeprefix("runs/"),
            item.dataset_version.removeprefix("datasets/"),
            item.message,
        )
    print_whole(table)


def feedback(
    answer: Annotated[str, typer.Argument(help="Id of the answer.", show_default=False)],
    rating: Annotated[str, typer.Argument(help="good, bad, or a number from -1 to 1.", show_default=False)],
    correction: Annotated[str, typer.Option("--correction", "-c", help="What the answer should have been.")] = "",
    label: Annotated[str, typer.Option("--label", "-l", help="The right label, of a classifier's answer.")] = "",
    comment: Annotated[str, typer.Option(help="Free text.")] = "",
    episode: Annotated[str, typer.Option(help="ID of the session that several answers belong to.")] = "",
    author: Annotated[str, typer.Option(help="Who gives the feedback.")] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Rates an answer by its id; the rating is stored with the version that answered."""
    try:
        value = _RATINGS.get(rating.lower()) or float(rating)
    except ValueError as error:
        raise InvalidArgumentError(
            f"The rating {rating!r} is not good, bad or a number from -1 to 1.",
            violations=[FieldViolation("rating", "not a number")],
        ) from error
    with connect(address) as connection:
        request = RecordFeedbackRequest(
            request_id=new_id(),
            answer=f"answers/{answer.removeprefix('answers/')}",
            rating=value,
            correction=correction,
            author=author,
            label=label,
            comment=comment,
            episode=episode,
        )
        recorded = connection.pipeline.RecordFeedback(request, metadata=connection.metadata, timeout=30).feedback
    if json_wanted:
        print_json(as_json(recorded))
    else:
        stdout().print(f"{recorded.name} for {recorded.answer}", markup=False)
        if not recorded.model_version:
            stderr().print(
                "No answer with this id is known yet. If that does not change within a minute, check the id.",
                style="yellow",
            )
