"""Rows of records and verdicts to domain objects and back; some are encrypted in the database, or have no original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.cleaning.adapters.vault import Vault
from services.cleaning.domain.originals import DATA_CLASS
from services.cleaning.domain.record import Cleaned, Keeping, RawRecord, Rejection, Verdict

# They say how a record may be used and not what it says, and are kept of every original. The last is a pseudonym.
_OPEN: Final = (DATA_CLASS, "licence", "consent", "feedback_person")
PLAIN: Final[Mapping[str, Any]] = {"originals": Keeping.PLAIN.value, "key_id": "", "sealed": None}
"""Columns of what is stored as it is."""


class RecordRows:
    """Maps between rows and records. Thread-safe."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def raw_row(self, record: RawRecord) -> dict[str, Any]:
        """Row of `raw_records`, not withdrawn.

        Raises:
            FailedPreconditionError: it is to be encrypted, and there is no key.
        """
        row = {
            "source": record.source,
            "record_id": record.record_id,
            "text": record.text,
            "attributes": dict(record.attributes),
            "content_digest": record.content_digest,
            "import_name": record.import_name,
            "event_time": record.event_time,
            "arrival": record.arrival,
            "withdrawn": False,
            "tenant": record.tenant,
            **PLAIN,
        }
        if record.keeping is Keeping.PLAIN:
            return row
        row |= {"originals": record.keeping.value, "text": "", "attributes": _open(record.attributes)}
        if record.keeping is Keeping.ENCRYPTED:
            key, sealed = self._vault.seal(record.text, record.attributes, *_raw_place(row))
            row |= {"key_id": key, "sealed": sealed}
        return row

    def raw_record(self, row: Mapping[Any, Any]) -> RawRecord:
        """Record of a row of `raw_records`, which does not have its origin.

        Raises:
            FailedPreconditionError: the key that it was encrypted with is missing.
            DataLossError: it was changed.
        """
        text, attributes = row["text"], row["attributes"]
        if row["key_id"]:
            text, attributes = self._vault.open(row["key_id"], row["sealed"], *_raw_place(row))
        record = RawRecord(
            row["record_id"],
            row["source"],
            text,
            attributes,
            row["import_name"],
            row["event_time"],
            row["arrival"],
            tenant=row["tenant"],
            keeping=Keeping(row["originals"]),
        )
        # Of what arrived, which the text here need not be.
        object.__setattr__(record, "_digest", row["content_digest"])
        return record

    def verdict_row(self, verdict: Verdict, traceparent: str) -> dict[str, Any]:
        """Row of `verdicts`, not announced yet; see `raw_row`."""
        rejection = verdict.cleaned.rejection
        row = {
            "dataset": verdict.dataset,
            "record_id": verdict.record_id,
            "source": verdict.source,
            "recipe_digest": verdict.recipe_digest,
            "content_digest": verdict.content_digest,
            "text": verdict.cleaned.text,
            "attributes": dict(verdict.cleaned.attributes),
            "reason": rejection.reason if rejection else "",
            "detail": rejection.detail if rejection else "",
            "operator": rejection.operator if rejection else "",
            "traceparent": traceparent,
            "announced": False,
            **PLAIN,
        }
        if verdict.keeping is Keeping.ENCRYPTED:
            key, sealed = self._vault.seal(verdict.cleaned.text, verdict.cleaned.attributes, *_verdict_place(row))
            row |= {"originals": verdict.keeping.value, "key_id": key, "sealed": sealed, "text": "", "attributes": {}}
        return row

    def verdict(self, row: Mapping[Any, Any], prefix: str = "") -> Verdict:
        """Verdict of a row of `verdicts`, whose columns may have a prefix; see `raw_record`."""
        text, attributes, reason = row[prefix + "text"], row[prefix + "attributes"], row[prefix + "reason"]
        if key := row[prefix + "key_id"]:
            text, attributes = self._vault.open(key, row[prefix + "sealed"], *_verdict_place(row, prefix))
        rejection = Rejection(reason, row[prefix + "detail"], row[prefix + "operator"]) if reason else None
        return Verdict(
            row[prefix + "record_id"],
            row[prefix + "source"],
            row[prefix + "dataset"],
            row[prefix + "recipe_digest"],
            row[prefix + "content_digest"],
            Cleaned(text, attributes, rejection),
            Keeping(row[prefix + "originals"]),
        )


def _open(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: attributes[name] for name in _OPEN if name in attributes}


def _raw_place(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return "raw_records", row["source"], row["record_id"], row["content_digest"]


def _verdict_place(row: Mapping[Any, Any], prefix: str = "") -> tuple[str, ...]:
    names = ("source", "record_id", "dataset", "recipe_digest", "content_digest")
    return "verdicts", *(row[prefix + name] for name in names)
