"""Sources of other packages beside those that read files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import Position, Sources, Survey
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal, check_record
from services.ingest.domain.source_import import PluginSource, SourceSpec
from services.ingest.engine.source_plugin import Source
from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, TidemillError
from services.kit.plugins import load_plugin

GROUP = "tidemill.sources"


class AllSources:
    """Implements `services.ingest.app.ports.Sources`: plugins by their name, files by `files`."""

    def __init__(self, files: Sources) -> None:
        self._files = files

    def survey(self, spec: SourceSpec, interrupt: Interrupt) -> Survey:
        """See the port."""
        if not isinstance(spec.kind, PluginSource):
            return self._files.survey(spec, interrupt)
        source = _source(spec.kind)
        try:
            return Survey([], 0, source.digest())
        except Exception as error:
            raise _failed(spec.kind, error) from error

    def read(
        self, spec: SourceSpec, survey: Survey, interrupt: Interrupt, position: Position | None = None
    ) -> Iterator[RawRecord | Refusal]:
        """See the port."""
        if not isinstance(spec.kind, PluginSource):
            yield from self._files.read(spec, survey, interrupt, position)
            return
        try:
            for number, pulled in enumerate(_source(spec.kind).records(), 1):
                interrupt.check()
                record = RawRecord(
                    spec.source, pulled.text, dict(pulled.attributes), pulled.record_id, pulled.event_time
                )
                try:
                    check_record(record)
                    yield record.identified()
                except RecordRefusedError as error:
                    content = pulled.text.encode("utf-8", "replace")
                    yield Refusal(f"{spec.kind.uri}:{number}", error.reason, error.message, content)
        except (GeneratorExit, InterruptedReadError):
            raise
        except Exception as error:
            raise _failed(spec.kind, error) from error


def _source(kind: PluginSource) -> Source[Any]:
    """The source with its parameters.

    Raises:
        InvalidArgumentError: there is no such plugin, or it does not take the parameters.
    """
    found = load_plugin(GROUP, kind.name, "spec.plugin.name")
    if not (isinstance(found, type) and issubclass(found, Source)):
        why = f"{kind.name} is not a subclass of {Source.__module__}.Source"
        violation = FieldViolation("spec.plugin.name", why)
        raise InvalidArgumentError(f"spec.plugin.name: {why}.", reason="PLUGIN_UNUSABLE", violations=[violation])
    try:
        return found(found.params_type.model_validate(dict(kind.config)))
    except ValidationError as error:
        violations = [
            FieldViolation(".".join(("spec.plugin.config", *map(str, each["loc"]))), each["msg"])
            for each in error.errors()
        ]
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise InvalidArgumentError(text, reason="INVALID_SOURCE", violations=violations) from error


def _failed(kind: PluginSource, error: Exception) -> TidemillError:
    if isinstance(error, TidemillError):
        return error
    return FailedPreconditionError(
        f"The source {kind.name} failed ({type(error).__name__}: {error}). Correct its config, or ask its author.",
        reason="SOURCE_UNREADABLE",
        metadata={"plugin": kind.name, "field": "spec.plugin"},
    )
