"""Which tenant pushes to a source: no other may, since a record of an equal id would take the place of its own."""

from __future__ import annotations

from collections.abc import Sequence

from services.ingest.app.policies import Policies
from services.ingest.app.source_ports import SourceStore
from services.ingest.domain.record import RawRecord
from services.kit.errors import FieldViolation, PermissionDeniedError

# Sources whose tenant is kept in memory: few are pushed to, but a key may make up names without end.
_REMEMBERED = 10_000


class SourceTenants:
    """Checks pushes by keys that have a tenant. Thread-safe.

    A source belongs to the tenant that its policy names, else to the first whose key pushed to it. Who has no tenant
    may push to any source, and says whose the records are.
    """

    def __init__(self, store: SourceStore, policies: Policies) -> None:
        self._store, self._policies = store, policies
        # A first tenant stays the first, so what was read once holds for good.
        self._first: dict[str, str] = {}

    def check(self, records: Sequence[RawRecord], tenant: str) -> None:
        """Takes the sources of these records for a tenant, or refuses all if one is another's.

        Raises:
            PermissionDeniedError: a source is another tenant's; names the field.
            UnavailableError: whose a source is cannot be read; retry.
        """
        if not tenant:
            return
        owners = {source: self._owner(source, tenant) for source in sorted({record.source for record in records})}
        for number, record in enumerate(records):
            if owners[record.source] != tenant:
                raise _refused(f"records[{number}].source", record.source)

    def _owner(self, source: str, tenant: str) -> str:
        owner = self._policies.tenant_of(source) or self._first.get(source, "")
        if not owner:
            owner = self._store.first_tenant(source, tenant)
            if len(self._first) >= _REMEMBERED:
                self._first.clear()
            self._first[source] = owner
        return owner


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
