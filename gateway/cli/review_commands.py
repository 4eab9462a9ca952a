"""`tidemill review`: answers that people look at, and what they decide."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from tidemill.pipeline.v1 import review_pb2
from tidemill.pipeline.v1.review_pb2 import Review
from tidemill.pipeline.v1.review_service_pb2 import (
    ListReviewsRequest,
    MeasureAgreementRequest,
    SubmitReviewRequest,
    TakeReviewRequest,
)

from gateway.cli.connection import Connection, connect
from gateway.cli.label_studio import from_tasks, labelling_config, to_tasks
from gateway.cli.output import (
    EXIT_FAILED,
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stderr,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.resource_names import model_name
from gateway.cli.views.text import shorten
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.grpc.errors import from_rpc_error
from services.kit.ids import new_id

_ACTIONS = {
    "accept": review_pb2.REVIEW_ACTION_ACCEPT,
    "edit": review_pb2.REVIEW_ACTION_EDIT,
    "relabel": review_pb2.REVIEW_ACTION_RELABEL,
    "reject": review_pb2.REVIEW_ACTION_REJECT,
    "skip": review_pb2.REVIEW_ACTION_SKIP,
}
_STATES = {
    "pending": Review.STATE_PENDING,
    "taken": Review.STATE_TAKEN,
    "done": Review.STATE_DONE,
    "all": Review.STATE_UNSPECIFIED,
}

review = typer.Typer(
    help="Answers that people look at: next, submit, walk, list, agreement, export, import.", no_args_is_help=True
)

ModelOption = Annotated[str, typer.Option("--model", help="Name of a model; all by default.", show_default=False)]
ReviewerOption = Annotated[
    str, typer.Option("--reviewer", help="Who reviews; the user of this machine by default.", show_default=False)
]
StateOption = Annotated[str, typer.Option("--state", help="pending, taken, done or all.")]


@review.command("next")
def take(
    model: ModelOption = "",
    reviewer: ReviewerOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Takes the answer that needs a review most; no one else gets it while its lease lasts."""
    with connect(address) as connection:
        found = _take(connection, model, reviewer)
    if json_wanted:
        print_json({} if found is None else as_json(found))
    elif found is None:
        stdout().print("Nothing is left to review.")
    else:
        _show(stdout(), found)


@review.command()
def submit(
    answer: Annotated[str, typer.Argument(help="answers/ANSWER", show_default=False)],
    action: Annotated[str, typer.Argument(help="accept, edit, relabel, reject or skip.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The right text or label.", show_default=False)] = "",
    comment: Annotated[str, typer.Option("--comment", help="Why.", show_default=False)] = "",
    reviewer: ReviewerOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Records a decision about an answer."""
    with connect(address) as connection:
        found = _submit(connection, answer, action, target, comment, reviewer)
    if json_wanted:
        print_json(as_json(found))
    else:
        stdout().print(f"{found.answer}: {action}", markup=False)


@review.command()
def walk(model: ModelOption = "", reviewer: ReviewerOption = "", address: AddressOption = None) -> None:
    """Goes through the queue by keys: a accept, e edit, l relabel, r reject, s skip, q quit."""
    out, keys = stdout(), {"a": "accept", "e": "edit", "l": "relabel", "r": "reject", "s": "skip"}
    with connect(address) as connection:
        while (found := _take(connection, model, reviewer)) is not None:
            _show(out, found)
            key = typer.prompt("a/e/l/r/s/q", default="", show_default=False).strip().lower()
            if key == "q":
                return
            if key not in keys:
                out.print("a accept, e edit, l relabel, r reject, s skip, q quit")
                continue
            target = typer.prompt("right answer") if key in "el" else ""
            _submit(connection, found.answer, keys[key], target, "", reviewer)
    out.print("Nothing is left to review.")


@review.command("list")
def list_reviews(
    model: ModelOption = "",
    state: StateOption = "pending",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists answers in the queue."""
    with connect(address) as connection:
        found = _all(connection, model, state)
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = plain_table()
    for column in ("answer", "need", "state", "by", "given"):
        table.add_column(column, no_wrap=True)
    for item in found:
        by = item.reviewer or ", ".join(decision.reviewer for decision in item.decisions)
        table.add_row(item.answer, _need(item), _state(item), by, shorten(item.given, 40))
    print_whole(table)


@review.command()
def agreement(model: ModelOption = "", address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Shows how far people agree who looked at the same answers: Cohen's kappa."""
    with connect(address) as connection:
        request = MeasureAgreementRequest(model=model_name(model) if model else "")
        found = connection.review.MeasureAgreement(request, metadata=connection.metadata, timeout=60).agreement
    if json_wanted:
        print_json(as_json(found))
        return
    out = stdout()
    out.print(f"{found.pending:,} answers wait, {found.done:,} are done; two people looked at {found.count:,} of them.")
    if found.count:
        out.print(f"They agree on {found.observed:.0%}.")
    if found.HasField("kappa"):
        kappa = found.kappa
        words = f"Cohen's kappa {kappa.value:.2f} [{kappa.ci_low:.2f}, {kappa.ci_high:.2f}], 95 % interval."
        out.print(words, markup=False)


@review.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where Label Studio's JSON is written.", show_default=False)],
    model: ModelOption = "",
    state: StateOption = "pending",
    config: Annotated[
        Path | None, typer.Option("--config", help="Where its labelling configuration is written.", show_default=False)
    ] = None,
    address: AddressOption = None,
) -> None:
    """Writes answers as tasks for Label Studio. They stay in the queue and are not taken."""
    with connect(address) as connection:
        found = _all(connection, model, state)
    file.write_text(json.dumps(to_tasks(found), ensure_ascii=False, indent=1), encoding="utf-8")
    if config is not None:
        config.write_text(labelling_config(any(item.classification for item in found)), encoding="utf-8")
    stdout().print(f"{len(found):,} answers written to {file}", markup=False)


@review.command("import")
def import_reviews(
    file: Annotated[Path, typer.Argument(help="An export of Label Studio, as JSON.", show_default=False)],
    address: AddressOption = None,
) -> None:
    """Records what people decided in Label Studio; a file that is imported twice is recorded once."""
    annotations = list(from_tasks(file.read_text(encoding="utf-8")))
    out, errors, recorded, known, failed = stdout(), stderr(), 0, 0, 0
    with connect(address) as connection:
        for item in annotations:
            request = SubmitReviewRequest(
                answer=item.answer, reviewer=item.reviewer, action=item.action, target=item.target
            )
            try:
                connection.review.SubmitReview(request, metadata=connection.metadata, timeout=30)
                recorded += 1
            except grpc.RpcError as error:
                refused = from_rpc_error(error)
                if refused.reason in ("REVIEW_DECIDED", "REVIEW_DONE"):
                    known += 1
                    continue
                failed += 1
                errors.print(f"{file}: {item.place}: {refused.message}", markup=False, soft_wrap=True)
    out.print(f"{recorded:,} decisions recorded, {known:,} were there already, {failed:,} refused", markup=False)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _take(connection: Connection, model: str, reviewer: str) -> Review | None:
    request = TakeReviewRequest(request_id=new_id(), model=model_name(model) if model else "", reviewer=_who(reviewer))
    response = connection.review.TakeReview(request, metadata=connection.metadata, timeout=30)
    return response.review if response.HasField("review") else None


def _submit(connection: Connection, answer: str, action: str, target: str, comment: str, reviewer: str) -> Review:
    if action not in _ACTIONS:
        what = f"must be one of {', '.join(_ACTIONS)}"
        raise InvalidArgumentError(f"{action!r}: {what}.", violations=[FieldViolation("action", what)])
    request = SubmitReviewRequest(
        request_id=new_id(),
        answer=f"answers/{answer.removeprefix('answers/')}",
        reviewer=_who(reviewer),
        action=_ACTIONS[action],
        target=target,
        comment=comment,
    )
    return connection.review.SubmitReview(request, metadata=connection.metadata, timeout=30).review


def _all(connection: Connection, model: str, state: str) -> list[Review]:
    if state not in _STATES:
        what = f"must be one of {', '.join(_STATES)}"
        raise InvalidArgumentError(f"--state {state!r}: {what}.", violations=[FieldViolation("state", what)])
    request = ListReviewsRequest(model=model_name(model) if model else "", state=_STATES[state], page_size=500)
    return [item for page in pages(connection, connection.review.ListReviews, request) for item in page.reviews]


def _who(reviewer: str) -> str:
    return reviewer or getpass.getuser()


def _need(item: Review) -> str:
    return Review.Need.Name(item.need).removeprefix("NEED_").lower().replace("_", " ")


def _state(item: Review) -> str:
    return Review.State.Name(item.state).removeprefix("STATE_").lower()


def _show(out: Console, item: Review) -> None:
    score = f" ({item.score:.2f})" if item.classification else ""
    out.print(f"{item.answer}  {_need(item)}  {item.model_version}", style="bright_black", markup=False)
    out.print(f"  {item.prompt}", markup=False, soft_wrap=True)
    out.print(f"  → {item.given}{score}", style="bold", markup=False, soft_wrap=True)
