"""Applies the policy of a source to its records, before anything else sees them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourcePolicy
from services.kit.ids import sha256_hex
from services.masking.masks import Mask, mask_of


class Handling:
    """What is done to the records of a source. Thread-safe."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._attributes = policy.attributes
        self._tenant, self._originals = policy.tenant, policy.originals
        self._mask: Mask | None = mask_of(()) if policy.mask else None

    def apply(self, record: RawRecord) -> RawRecord:
        """The record under its policy; its own attributes and its own tenant win over those of the policy."""
        attributes = {**self._attributes, **record.attributes}
        record = replace(record, tenant=record.tenant or self._tenant, originals=self._originals)
        if self._mask is None:
            return replace(record, attributes=attributes)
        return replace(
            record,
            text=self._mask(record.text),
            attributes={name: self._mask(value) for name, value in attributes.items()},
            record_id=self._masked_id(record),
        )

    def apply_to_refused(self, refused: Refusal) -> Refusal:
        """What the dead letters may keep of a piece of the source that is not a valid record."""
        if self._mask is None:
            return refused
        content = self._mask(refused.content.decode("utf-8", "replace")).encode("utf-8", "replace")
        return replace(
            refused, location=self._mask(refused.location), message=self._mask(refused.message), content=content
        )

    def _masked_id(self, record: RawRecord) -> str:
        """The identity; where it shows who someone is, another that stays the same."""
        assert self._mask is not None
        if self._mask(record.record_id) == record.record_id:
            return record.record_id
        return "pii_" + sha256_hex(record.source, record.record_id)[:32]


@lru_cache(maxsize=256)
def handling_of(policy: SourcePolicy) -> Handling:
    """The handling of a policy."""
    return Handling(policy)
