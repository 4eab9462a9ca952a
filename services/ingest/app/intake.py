"""Use case: accept a batch of pushed records, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from services.ingest.app.policies import Policies
from services.ingest.app.ports import Accepted, BatchStore, RecordSink
from services.ingest.app.source_tenants import SourceTenants
from services.ingest.domain.record import FEEDBACK_SOURCES, RawRecord
from services.kit.clock import Clock
from services.kit.errors import FieldViolation, InvalidArgumentError, PermissionDeniedError, request_id_reused
from services.kit.ids import sha256_hex


class Intake:
    """Accepts batches. Thread-safe.

    The order prevents losses: first the records become durable, then the request is remembered. After a crash in
    between, the repeat publishes the same records again under the same identities.
    """

    def __init__(
        self,
        sink: RecordSink,
        batches: BatchStore,
        policies: Policies,
        tenants: SourceTenants,
        clock: Clock,
        retention_s: float,
    ) -> None:
        self._sink = sink
        self._policies = policies
        self._tenants = tenants
        self._batches = batches
        self._clock = clock
        self._retention = timedelta(seconds=retention_s)

    def accept(self, records: Sequence[RawRecord], request_id: str = "", tenant: str = "") -> Sequence[str]:
        """Makes a batch durable; a repeated request within the retention gets the same answer as the first.

        Args:
            records: the batch.
            request_id: of the caller; empty without one.
            tenant: of the caller, to whom records that say nothing belong; empty without one.

        Returns:
            Record names, in the order of the batch.

        Raises:
            InvalidArgumentError: the request id was used for another batch, or a source is that of feedback.
            PermissionDeniedError: a record, or a source, is another tenant's.
            UnavailableError: not all of it is durable; retry.
            ResourceExhaustedError: the disk is nearly full; retry later.
        """
        _check_sources(records)
        owned = _owned(records, tenant)
        self._tenants.check(owned, tenant)
        accepted = self._identified([Accepted(record) for record in owned])
        record_ids = [item.record.record_id for item in accepted]
        if not request_id:
            self._sink.accept(accepted)
            return record_ids
        digest = sha256_hex(
            *(part for item in accepted for part in (item.record.record_id, item.record.content_digest))
        )
        # An id that another tenant used is not this one's.
        known_as = sha256_hex("batch", tenant, request_id) if tenant else request_id
        known = self._batches.batch_digest(known_as)
        if known is None:
            self._sink.accept(accepted)
            self._batches.remember_batch(known_as, digest, self._clock.now())
        elif known != digest:
            raise request_id_reused(request_id, "batch")
        return record_ids

    def accept_traced(self, records: Sequence[Accepted]) -> None:
        """Makes records durable, each with a trace of its own.

        Raises:
            InvalidArgumentError: a source is that of feedback.
        """
        _check_sources([item.record for item in records])
        self._sink.accept(self._identified(records))

    def _identified(self, records: Sequence[Accepted]) -> list[Accepted]:
        """The records under the policies of their sources; an identity that is derived comes from what is published."""
        return [Accepted(item.record.identified(), item.trace) for item in self._policies.apply(records)]

    def forget_old(self) -> None:
        """Forgets requests whose retention has passed."""
        self._batches.forget_batches(self._clock.now() - self._retention)


def _check_sources(records: Sequence[RawRecord]) -> None:
    """Refuses records that pretend to be feedback: it comes from the pipeline service, by imports, alone."""
    for number, record in enumerate(records):
        if record.source.startswith(FEEDBACK_SOURCES):
            what = f"must not begin with {FEEDBACK_SOURCES!r}: such sources hold feedback, which is given as feedback"
            raise InvalidArgumentError(
                f"records[{number}].source {what}.",
                reason="RESERVED_SOURCE",
                violations=[FieldViolation(f"records[{number}].source", what)],
            )


def _owned(records: Sequence[RawRecord], tenant: str) -> Sequence[RawRecord]:
    """The records with their tenant: that of the caller, who cannot send for another; without one, what they say."""
    if not tenant:
        return records
    for number, record in enumerate(records):
        if record.tenant not in ("", tenant):
            raise PermissionDeniedError(
                f"records[{number}].tenant is {record.tenant}, but the key is of the tenant {tenant}: leave it empty.",
                reason="OTHER_TENANT",
                metadata={"field": f"records[{number}].tenant"},
            )
    return [replace(record, tenant=tenant) for record in records]
