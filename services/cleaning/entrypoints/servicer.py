# ruff: noqa: N802 - method names follow the contract
"""CleaningService over gRPC: map in, one call, map out. The use cases block, so they run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as grpc_stubs

from services.cleaning.app.cards import Cards
from services.cleaning.app.datasets import Datasets
from services.cleaning.app.erasures import Erasures
from services.cleaning.app.explanations import Explanations
from services.cleaning.app.records import Records
from services.cleaning.domain.dataset import DatasetVersion
from services.cleaning.engine.card.markdown import markdown_card
from services.cleaning.engine.card.page import html_card
from services.cleaning.entrypoints import mapping
from services.cleaning.entrypoints.pool import WorkPool
from services.kit.grpc.paging import NUMBER, number_of, read_page
from services.kit.grpc.watching import watch
from services.kit.telemetry.context import current_traceparent
from services.kit.threads import in_thread

_PER_REASON = 5


class CleaningServicer(grpc_stubs.CleaningServiceServicer):
    """Implements `tidemill.cleaning.v1.CleaningService`."""

    def __init__(
        self,
        records: Records,
        datasets: Datasets,
        explanations: Explanations,
        erasures: Erasures,
        cards: Cards,
        cleaning: WorkPool,
    ) -> None:
        self._records = records
        self._erasures = erasures
        self._cards = cards
        self._datasets = datasets
        self._explanations = explanations
        self._cleaning = cleaning

    async def CleanText(self, request: pb.CleanTextRequest, context: Any) -> pb.CleanTextResponse:
        """Applies a recipe to one text."""
        operators = [mapping.operator_from(item) for item in request.operators]
        text, attributes = request.text, dict(request.attributes)
        explanation = await self._cleaning.run(
            self._records.clean_text, text, attributes, request.dataset, operators, explain=request.explain
        )
        answer = mapping.explanation_to(explanation)
        if request.HasField("augment"):
            augment = mapping.augment_from(request.augment)
            made = await self._cleaning.run(self._records.variants, answer.text, operators, augment)
            answer.variants.extend(map(mapping.variant_to, made))
        return answer

    async def CountRecords(self, request: pb.CountRecordsRequest, context: Any) -> pb.CountRecordsResponse:
        """Counts records."""
        sources, tenants = list(request.sources), list(request.tenants)
        count, newest = await asyncio.to_thread(self._records.count, sources, request.after, tenants)
        return pb.CountRecordsResponse(count=count, newest_arrival=newest)

    async def EraseFeedback(self, request: pb.EraseFeedbackRequest, context: Any) -> pb.EraseFeedbackResponse:
        """Erases what a person taught."""
        done = await asyncio.to_thread(self._erasures.erase, request.person, list(request.record_ids))
        return pb.EraseFeedbackResponse(record_count=done.records, dataset_versions=done.versions)

    async def GetRecord(self, request: pb.GetRecordRequest, context: Any) -> pb.GetRecordResponse:
        """Returns a record and its verdicts."""
        found = await asyncio.to_thread(self._records.record, request.record_id, request.source)
        return pb.GetRecordResponse(
            record_id=found.record.record_id,
            source=found.record.source,
            import_name=found.record.import_name,
            verdicts=[mapping.verdict_to(verdict) for verdict in found.verdicts],
            name=found.record.name,
            withdrawn=found.withdrawn,
            tenant=found.record.tenant,
        )

    async def ExplainRecord(self, request: pb.ExplainRecordRequest, context: Any) -> pb.ExplainRecordResponse:
        """Shows what each data set made of a record."""
        collected, found = await self._cleaning.run(self._explanations.explain, request.record_id, request.source)
        record = collected.record
        return pb.ExplainRecordResponse(
            name=record.name,
            record_id=record.record_id,
            source=record.source,
            import_name=record.import_name,
            withdrawn=collected.withdrawn,
            datasets=map(mapping.dataset_explanation_to, found),
            variant_id=request.record_id if request.record_id != record.record_id else "",
            original=mapping.KEEPINGS[record.keeping],
            tenant=record.tenant,
        )

    async def PutDataset(self, request: pb.PutDatasetRequest, context: Any) -> pb.PutDatasetResponse:
        """Creates or replaces a data set. It is idempotent anyway, so `request_id` is not used."""
        spec = mapping.spec_from(request.spec)
        dataset = await asyncio.to_thread(self._datasets.put, request.name, spec)
        return pb.PutDatasetResponse(dataset=mapping.dataset_to(dataset))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:
        """Returns a data set."""
        dataset = await asyncio.to_thread(self._datasets.get, request.name)
        return pb.GetDatasetResponse(dataset=mapping.dataset_to(dataset))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        """Lists data sets; the page token is the last name."""
        read = in_thread(self._datasets.list)
        page = await read_page(request, "datasets/.+", read, lambda dataset: dataset.name)
        datasets = [mapping.dataset_to(dataset) for dataset in page.items]
        return pb.ListDatasetsResponse(datasets=datasets, next_page_token=page.next_token)

    async def BuildDatasetVersion(
        self, request: pb.BuildDatasetVersionRequest, context: Any
    ) -> pb.BuildDatasetVersionResponse:
        """Creates a version."""
        awaited = [mapping.awaited_from(item) for item in request.awaited_imports]
        version, existed = await asyncio.to_thread(
            self._datasets.build_version, request.dataset, awaited, request.request_id, current_traceparent()
        )
        message = mapping.version_to(version)
        message.reused |= existed
        return pb.BuildDatasetVersionResponse(dataset_version=message)

    async def GetDatasetVersion(
        self, request: pb.GetDatasetVersionRequest, context: Any
    ) -> pb.GetDatasetVersionResponse:
        """Returns a version."""
        version = await asyncio.to_thread(self._datasets.version, request.name)
        return pb.GetDatasetVersionResponse(dataset_version=mapping.version_to(version))

    async def GetDatasetCard(self, request: pb.GetDatasetCardRequest, context: Any) -> pb.GetDatasetCardResponse:
        """Describes a version."""
        figures = await asyncio.to_thread(self._cards.figures, request.name)
        return pb.GetDatasetCardResponse(markdown=markdown_card(figures), html=html_card(figures))

    async def SampleRejections(self, request: pb.SampleRejectionsRequest, context: Any) -> pb.SampleRejectionsResponse:
        """Names rejected records."""
        per_reason = request.per_reason or _PER_REASON
        found = await asyncio.to_thread(self._cards.rejections, request.name, per_reason)
        return pb.SampleRejectionsResponse(samples=[mapping.sample_to(*each) for each in found.items()])

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Any
    ) -> pb.ListDatasetVersionsResponse:
        """Lists versions; the page token is the last number."""

        async def read(token: str, limit: int) -> Sequence[DatasetVersion]:
            return await asyncio.to_thread(self._datasets.versions, request.dataset, number_of(token), limit)

        page = await read_page(request, NUMBER, read, lambda version: str(version.number))
        versions = [mapping.version_to(version) for version in page.items]
        return pb.ListDatasetVersionsResponse(dataset_versions=versions, next_page_token=page.next_token)

    async def CancelDatasetVersion(
        self, request: pb.CancelDatasetVersionRequest, context: Any
    ) -> pb.CancelDatasetVersionResponse:
        """Cancels a build."""
        version = await asyncio.to_thread(self._datasets.cancel, request.name)
        return pb.CancelDatasetVersionResponse(dataset_version=mapping.version_to(version))

    async def WatchDatasetVersion(
        self, request: pb.WatchDatasetVersionRequest, context: Any
    ) -> AsyncIterator[pb.WatchDatasetVersionResponse]:
        """Sends the version now and at each change; ends with its final state."""
        read = in_thread(partial(self._datasets.version, request.name))
        async for version in watch(read, lambda version: version.state.final):
            yield pb.WatchDatasetVersionResponse(dataset_version=mapping.version_to(version))
