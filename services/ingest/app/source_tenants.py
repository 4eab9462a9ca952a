"""Which tenant pushes to a source: no other may, since a record of an equal id would take the place of its own."""

from __future__ import annotations

from collections.abc import Sequence

from services.ingest.app.policies import Policies
from services.ingest.app.source_ports import SourceStore
from services.ingest.domain.record import RawRecord
from services.kit.errors import FieldViolation, PermissionDeniedError


class SourceTenants:
    """Checks pushes by keys that have a tenant. Thread-safe.

    A source belongs to the tenant that its policy names, else to the first whose key pushed to it. Who has no tenant
    may push to any source, and says whose the records are.
    """

    def __init__(self, store: SourceStore, policies: Policies) -> None:
        self._store, self._policies = store, policies
        # A first tenant stays the first, so what was read once holds for good. Few sources are pushed to.
        self._first: dict[str, str] = {}

    def check(self, records: Sequence[RawRecord], tenant: str) -> None:
        """Takes the sources of these records for a tenant, or refuses all if one is another's.

        Raises:
            PermissionDeniedError: a source is another tenant's; names the field.
            UnavailableError: whose a source is cannot be read; retry.
        """
        if not tenant:
            return
        named = {source: self._policies.tenant_of(source) for source in {record.source for record in records}}
        for source in sorted(source for source, owner in named.items() if not owner and source not in self._first):
            self._first[source] = self._store.first_tenant(source, tenant)
        for number, record in enumerate(records):
            if (named[record.source] or self._first[record.source]) != tenant:
                raise _refused(f"records[{number}].source", record.source)


def _refused(field: str, source: str) -> PermissionDeniedError:
    # It does not say whose: that is the other tenant's business.
    what = (
        f"is {source}, which belongs to another tenant: send to a source of your own. An operator may change whose it "
        "is by the `tenant` of the source's policy"
    )
    return PermissionDeniedError(
        f"{field} {what}.",
        reason="SOURCE_OF_OTHER_TENANT",
        metadata={"field": field},
        violations=[FieldViolation(field, what)],
    )
