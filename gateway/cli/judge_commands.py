"""`tidemill judges`: what rates answers while models serve, and how far it can be relied on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from tidemill.pipeline.v1.judge_pb2 import Judge, JudgeRating
from tidemill.pipeline.v1.judge_service_pb2 import ListJudgeRatingsRequest, ListJudgesRequest

from gateway.cli.connection import connect
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.resource_names import model_name
from gateway.formats import judge_cost, judge_kind

judges = typer.Typer(help="What rates answers while models serve: list, ratings.", no_args_is_help=True)

_STATES = {
    JudgeRating.STATE_PENDING: "waits",
    JudgeRating.STATE_FAILED: "no rating",
    JudgeRating.STATE_OVER_LIMIT: "over the limit",
}


@judges.command("list")
def list_judges(
    model: Annotated[str, typer.Option("--model", help="Name of a model; all by default.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists judges: what they rated, what they cost today, and their agreement with people."""
    request = ListJudgesRequest(model=model_name(model) if model else "", page_size=500)
    with connect(address) as connection:
        found = [item for page in pages(connection, connection.judge.ListJudges, request) for item in page.judges]
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    out = stdout()
    for item in found:
        _show(out, item)
    if not found:
        out.print("No pipeline names a judge (`capture.judges`).")


@judges.command()
def ratings(
    model: Annotated[str, typer.Argument(help="Name of a model.", show_default=False)],
    judge: Annotated[str, typer.Option("--judge", help="Name of a judge; all by default.", show_default=False)] = "",
    answer: Annotated[str, typer.Option("--answer", help="answers/ANSWER; all by default.", show_default=False)] = "",
    limit: Annotated[int, typer.Option("--limit", help="How many, newest answer first.", min=1, max=1000)] = 50,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists what judges said of a model's answers."""
    named = f"answers/{answer.removeprefix('answers/')}" if answer else ""
    request = ListJudgeRatingsRequest(model=model_name(model), judge=judge, answer=named, page_size=limit)
    with connect(address) as connection:
        found = connection.judge.ListJudgeRatings(request, metadata=connection.metadata, timeout=60).ratings
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = plain_table()
    for column in ("answer", "judge", "rating", "why"):
        table.add_column(column, no_wrap=column != "why")
    for item in found:
        table.add_row(item.answer, item.judge.rpartition("/")[2], _rating(item), item.reason)
    print_whole(table)


def _rating(item: JudgeRating) -> str:
    if item.state == JudgeRating.STATE_RATED:
        return "good" if item.rating > 0 else "bad"
    return _STATES.get(item.state, "unknown")


def _show(out: Console, item: Judge) -> None:
    state = "may decide" if item.checked else "does not decide"
    out.print(f"{item.name}  {judge_kind(item.spec)}, {state}", markup=False, soft_wrap=True)
    out.print(f"  {item.why}", markup=False, soft_wrap=True)
    counts = f"{item.rated:,} rated, {item.good_share:.0%} of them good" if item.rated else "nothing rated yet"
    others = [(item.pending, "wait"), (item.failed, "without a verdict"), (item.over_limit, "over the limit")]
    rest = "".join(f", {count:,} {word}" for count, word in others if count)
    out.print(f"  {counts}{rest}; {judge_cost(item)}", markup=False, soft_wrap=True)
    if item.error:
        out.print(f"  It rates nothing at the moment: {item.error}", style="yellow", markup=False, soft_wrap=True)
