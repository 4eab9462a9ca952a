"""Data sets: what was dropped and why, how they grow; and the way of a single record."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup
from starlette.responses import Response
from tidemill.cleaning.v1.cleaning_service_pb2 import (
    DatasetExplanation,
    ExplainRecordRequest,
    ExplainRecordResponse,
    GetDatasetRequest,
    GetDatasetVersionRequest,
    ListDatasetsRequest,
    ListDatasetVersionsRequest,
    OriginalKeeping,
    SampleRejectionsRequest,
)
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.inference.v1.inference_service_pb2 import ListModelsRequest, ListModelVersionsRequest

from gateway.console.calls import every_page, may, section, sections
from gateway.console.view import Page, View
from gateway.figures.marks import share_bar
from gateway.formats import Status, drops, recipe
from services.kit.ids import parts_of_record_name

_VERSIONS = 50
_ALL = 1000
_PLACES = {
    DatasetExplanation.PLACEMENT_TRAIN: Status("for training", "good"),
    DatasetExplanation.PLACEMENT_HOLDOUT: Status("held out", "good"),
    DatasetExplanation.PLACEMENT_REJECTED: Status("rejected", "warn"),
    DatasetExplanation.PLACEMENT_ABSENT: Status("not in this version", "idle"),
    DatasetExplanation.PLACEMENT_HELD_BACK: Status("held back", "good"),
}
_ORIGINALS = {
    OriginalKeeping.ORIGINAL_KEEPING_ENCRYPTED: "stored encrypted",
    OriginalKeeping.ORIGINAL_KEEPING_NONE: "not kept: below is what the recipes made of it as it arrived",
}


@dataclass(frozen=True, slots=True)
class Part:
    """What became of some of the records."""

    what: str
    count: int
    share: float
    bar: Markup


def funnel(version: DatasetVersion) -> list[Part]:
    """What came in, what was dropped for which reason, and what is left."""
    rows: list[tuple[str, int, str]] = [
        ("in", version.records_in, "busy"),
        *((f"rejected: {reason.replace('_', ' ')}", count, "warn") for reason, count in drops(version)),
        ("for training", version.train_count - sum(version.variant_counts.values()), "good"),
        *((f"variants by {name}", count, "good") for name, count in sorted(version.variant_counts.items())),
        ("held out", version.holdout_count, "good"),
    ]
    if held_back := version.feedback_counts.get("held_back", 0):
        rows.append(("feedback that is measured on", held_back, "good"))
    total = version.records_in or 1
    return [Part(what, count, count / total, share_bar(count / total, tone)) for what, count, tone in rows]


def place_of(explanation: DatasetExplanation) -> Status:
    """Where the newest version of a data set has a record."""
    return _PLACES.get(explanation.placement, Status("no version yet", "idle"))


async def datasets(view: View) -> Response:
    """All data sets, and the way to a record."""
    request = ListDatasetsRequest(page_size=200, page_token=view.next_token)
    found = await view.services.cleaning.ListDatasets(request)
    return view.page(
        "datasets.html",
        datasets=found.datasets,
        older=found.next_page_token,
        after=view.next_token,
        may_explain=may("CleaningService", "ExplainRecord"),
    )


async def dataset(view: View) -> Response:
    """One data set: its recipe and its versions."""
    name = f"datasets/{view.parameter('dataset')}"
    found = (await view.services.cleaning.GetDataset(GetDatasetRequest(name=name))).dataset
    request = ListDatasetVersionsRequest(dataset=name, page_size=_VERSIONS, page_token=view.next_token)
    listed = await view.services.cleaning.ListDatasetVersions(request)
    largest = max((each.records_in for each in listed.dataset_versions), default=0) or 1
    return view.page(
        "dataset.html",
        dataset=found,
        recipe=recipe(found.spec.operators),
        versions=[(each, share_bar(kept(each) / largest, "good")) for each in listed.dataset_versions],
        older=listed.next_page_token,
        after=view.next_token,
    )


def kept(version: DatasetVersion) -> int:
    """Records that a version has, held-out ones included."""
    return version.train_count + version.holdout_count


async def version(view: View) -> Response:
    """One version: the funnel, the recipe, and the models that it taught."""
    name = f"datasets/{view.parameter('dataset')}/versions/{view.parameter('version')}"
    found = (await view.services.cleaning.GetDatasetVersion(GetDatasetVersionRequest(name=name))).dataset_version
    taught, sampled = await sections(
        _taught(view, {name}), view.services.cleaning.SampleRejections(SampleRejectionsRequest(name=name))
    )
    return view.page(
        "dataset_version.html",
        version=found,
        parts_=funnel(found),
        samples=sampled.found.samples if sampled.found else [],
        recipe=recipe(found.spec.operators),
        models=taught.found or [],
        refresh=3 if found.state == DatasetVersion.STATE_BUILDING else 0,
    )


async def _taught(view: View, versions: set[str]) -> list[tuple[str, str]]:
    """Model versions that these data-set versions taught, with the data-set version."""
    inference = view.services.inference
    taught = []
    async for models in every_page(inference.ListModels, ListModelsRequest(page_size=_ALL)):
        for each in models.models:
            request = ListModelVersionsRequest(model=each.name, page_size=_ALL)
            async for listed in every_page(inference.ListModelVersions, request):
                taught += [
                    (made.name, made.dataset_version)
                    for made in listed.model_versions
                    if made.dataset_version in versions
                ]
    return taught


def original_of(found: ExplainRecordResponse) -> str:
    """How the original of a record is kept; empty if as it is."""
    return _ORIGINALS.get(found.original, "")


async def record(view: View) -> Response:
    """The way of a record: its source, what each operator did, data sets, and models that learnt from it."""
    record_id, source = view.query("record").strip(), view.query("source").strip()
    if named := parts_of_record_name(record_id):
        source, record_id = named
    request = ExplainRecordRequest(record_id=record_id, source=source)
    found = await view.services.cleaning.ExplainRecord(request)
    versions = {each.dataset_version for each in found.datasets if each.dataset_version}
    taught = await section(_taught(view, versions))
    return view.page(
        "record.html",
        record=found,
        original=original_of(found),
        datasets=[(each, place_of(each)) for each in found.datasets],
        models=taught.found or [],
    )


PAGES = (
    Page("GET", "/datasets", datasets),
    Page("GET", "/datasets/{dataset}", dataset),
    Page("GET", "/datasets/{dataset}/versions/{version}", version),
    Page("GET", "/records", record),
)
