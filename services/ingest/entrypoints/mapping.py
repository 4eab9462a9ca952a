"""Messages of the contract to domain objects and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

from google.protobuf.json_format import MessageToDict
from tidemill.ingest.v1 import source_import_pb2
from tidemill.ingest.v1.record_pb2 import Record

from services.ingest.domain.record import RawRecord
from services.ingest.domain.source_import import (
    DEFAULT_ENCODING,
    DEFAULT_MAIL_PATTERN,
    DEFAULT_PATTERN,
    DEFAULT_TEXT_FIELD,
    CsvFiles,
    Import,
    ImportState,
    JsonLines,
    MailFolder,
    PluginSource,
    SourceKind,
    SourceSpec,
    TextFolder,
)
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.grpc.messages import failure_to, progress_to, timestamp

_STATES = {
    ImportState.RUNNING: source_import_pb2.Import.STATE_RUNNING,
    ImportState.SUCCEEDED: source_import_pb2.Import.STATE_SUCCEEDED,
    ImportState.FAILED: source_import_pb2.Import.STATE_FAILED,
    ImportState.CANCELLED: source_import_pb2.Import.STATE_CANCELLED,
}


def record_from(message: Record, place: str = "record") -> RawRecord:
    """A pushed record, unchanged.

    Args:
        message: the record.
        place: its position in the request, for example `records[3]`.

    Raises:
        InvalidArgumentError: its time is outside the years 1 to 9999.
    """
    try:
        event_time = message.event_time.ToDatetime(UTC) if message.HasField("event_time") else None
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{place}.event_time must be between the years 1 and 9999: {error}.",
            reason="INVALID_TIME",
            violations=[FieldViolation(f"{place}.event_time", str(error))],
        ) from error
    return RawRecord(message.source, message.text, dict(message.attributes), message.record_id, event_time)


def spec_from(message: source_import_pb2.SourceSpec) -> SourceSpec:
    """A source's spec, with the contract's defaults for empty fields."""
    kind: SourceKind
    if message.WhichOneof("kind") == "plugin":
        kind = PluginSource(message.plugin.name, MessageToDict(message.plugin.config))
    elif message.WhichOneof("kind") == "csv_files":
        table = message.csv_files
        kind = CsvFiles(
            table.uri,
            table.text_field or DEFAULT_TEXT_FIELD,
            table.id_field,
            tuple(table.attribute_fields),
            table.delimiter,
            table.encoding or DEFAULT_ENCODING,
        )
    elif message.WhichOneof("kind") == "mail_folder":
        mail = message.mail_folder
        kind = MailFolder(mail.uri, mail.pattern or DEFAULT_MAIL_PATTERN, mail.folder_attribute, tuple(mail.headers))
    elif message.WhichOneof("kind") == "text_folder":
        folder = message.text_folder
        kind = TextFolder(
            folder.uri, folder.pattern or DEFAULT_PATTERN, folder.folder_attribute, folder.encoding or DEFAULT_ENCODING
        )
    else:
        lines = message.json_lines
        kind = JsonLines(
            lines.uri, lines.text_field or DEFAULT_TEXT_FIELD, lines.id_field, tuple(lines.attribute_fields)
        )
    return SourceSpec(message.source, kind, message.max_records)


def spec_to(spec: SourceSpec) -> source_import_pb2.SourceSpec:
    """A source's spec as a message."""
    message = source_import_pb2.SourceSpec(source=spec.source, max_records=spec.max_records)
    kind = spec.kind
    if isinstance(kind, PluginSource):
        message.plugin.name = kind.name
        message.plugin.config.update(dict(kind.config))
    elif isinstance(kind, TextFolder):
        message.text_folder.uri = kind.uri
        message.text_folder.pattern = kind.pattern
        message.text_folder.folder_attribute = kind.folder_attribute
        message.text_folder.encoding = kind.encoding
    elif isinstance(kind, CsvFiles):
        message.csv_files.uri = kind.uri
        message.csv_files.text_field = kind.text_field
        message.csv_files.id_field = kind.id_field
        message.csv_files.attribute_fields.extend(kind.attribute_fields)
        message.csv_files.delimiter = kind.delimiter
        message.csv_files.encoding = kind.encoding
    elif isinstance(kind, MailFolder):
        message.mail_folder.uri = kind.uri
        message.mail_folder.pattern = kind.pattern
        message.mail_folder.folder_attribute = kind.folder_attribute
        message.mail_folder.headers.extend(kind.headers)
    else:
        message.json_lines.uri = kind.uri
        message.json_lines.text_field = kind.text_field
        message.json_lines.id_field = kind.id_field
        message.json_lines.attribute_fields.extend(kind.attribute_fields)
    return message


def import_to(item: Import, *, reused: bool = False) -> source_import_pb2.Import:
    """An import as a message."""
    progress = item.progress
    if progress is not None and item.state.final:
        progress = replace(progress, rate=0.0)
    return source_import_pb2.Import(
        name=item.name,
        create_time=timestamp(item.create_time),
        update_time=timestamp(item.update_time),
        spec=spec_to(item.spec),
        state=_STATES[item.state],
        record_count=item.record_count,
        rejected_count=item.rejected_count,
        digest=item.digest,
        reused=reused,
        added_count=item.differences.added,
        changed_count=item.differences.changed,
        withdrawn_count=item.differences.gone,
        not_synchronized=item.not_synchronized,
        failure=failure_to(item.failure),
        progress=progress_to(progress),
    )
