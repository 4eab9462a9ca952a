"""`tidemill plan`: the memory that a training needs, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from tidemill.training.v1.run_pb2 import Strategy
from tidemill.training.v1.training_service_pb2 import PlanTrainingRequest, PlanTrainingResponse

from gateway.cli.amounts import byte_count
from gateway.cli.connection import connect
from gateway.cli.output import AddressOption, JsonOption, as_json, plain_table, print_json, print_whole, stdout
from services.kit.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMNS = ("strategy", "devices", "weights", "gradients", "optimizer", "activations", "peak", "fits")


def plan(
    file: Annotated[
        Path, typer.Argument(help="A pipeline file, or one with a training spec only.", show_default=False)
    ],
    devices: Annotated[int, typer.Option(min=0, help="GPUs of another machine; the mesh's own machine when 0.")] = 0,
    memory: Annotated[str, typer.Option(help="Memory of each of them, such as 80GB.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows the memory that a training needs on each device, and which strategies fit."""
    from gateway.cli.pipeline_file import load_training

    training = load_training(file)
    request = PlanTrainingRequest(
        spec=training.spec, devices=devices, device_bytes=byte_count(memory, "--memory", plain=True)
    )
    with connect(address) as connection:
        try:
            with connection.errors():
                found = connection.training.PlanTraining(request, metadata=connection.metadata, timeout=60)
        except InvalidArgumentError as error:
            raise training.locate(error) from error
    if json_wanted:
        print_json(as_json(found))
        return
    out = stdout()
    out.print(
        f"{training.spec.base_model}: {_count(found.parameters)} weights, {_count(found.trainable_parameters)} of them "
        f"trained; {found.device}, {_size(found.device_bytes)} a device"
    )
    print_whole(strategies(found))
    if found.nearest:
        strategy = Strategy.Name(training.spec.strategy).removeprefix("STRATEGY_").lower()
        where = f"with {strategy}" if training.spec.processes > 1 else "on one device"
        out.print(f"Does not fit {where}: {found.nearest}.")
    out.print("\nWith this method and batch, fsdp in 16 bits with blocks computed again, devices of that size for:")
    print_whole(sizes(found))


def strategies(found: PlanTrainingResponse) -> Table:
    """A row for each strategy."""
    rows = [
        (
            each.strategy,
            str(each.devices),
            *map(_size, (each.weights_bytes, each.gradients_bytes, each.optimizer_bytes, each.activations_bytes)),
            _size(each.peak_bytes),
            "yes" if each.fits else "no",
        )
        for each in found.strategies
    ]
    return _table(_COLUMNS, rows)


def sizes(found: PlanTrainingResponse) -> Table:
    """A row for each size of model."""
    rows = [(each.name, _count(each.parameters), str(each.devices or "none is enough")) for each in found.sizes]
    return _table(("model", "weights", "devices"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = plain_table()
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 10**8 else f"{count / 1e6:,.1f} MB"


def _count(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 10**9 else f"{count / 1e6:.2f} M"
