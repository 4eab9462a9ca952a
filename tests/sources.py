"""Readers of sources with the walls that a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from services.ingest.adapters.crawl.page_store import SqlPageStore
from services.ingest.adapters.source_files.port import ReadLimits
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.secrets import SourceSecrets
from services.ingest.adapters.sources import FileSources
from services.ingest.adapters.tables import metadata
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.kit.network_rules import NetworkRules
from services.kit.network_wall import LookUp, system_look_up

_LOOK_UPS = ThreadPoolExecutor(4, thread_name_prefix="test-look-up")


def file_sources(
    *roots: str | Path,
    compared_bytes: int = 1 << 20,
    hosts: Sequence[str] = (),
    limits: ReadLimits | None = None,
    s3_endpoint: str = "",
    look_up: LookUp = system_look_up,
    examples: str | Path = "",
    secrets: Path | None = None,
    pages: SqlPageStore | None = None,
) -> FileSources:
    """A reader that may read below these roots."""
    return FileSources(
        compared_bytes,
        SourceRoots([str(root) for root in roots], examples=str(examples)),
        NetworkRules(hosts),
        _LOOK_UPS,
        pages or _pages(),
        limits=limits,
        s3_endpoint=s3_endpoint,
        look_up=look_up,
        secrets=SourceSecrets(secrets),
    )


@cache
def _pages() -> SqlPageStore:
    """For tests that do not look at what crawls keep."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    metadata.create_all(engine)
    return SqlPageStore(engine)


def pull(sources: FileSources, spec: SourceSpec) -> list[RawRecord | Refusal]:
    """All pieces of a source."""
    return list(sources.read(spec, sources.survey(spec, Interrupt()), Interrupt()))


def texts(sources: FileSources, spec: SourceSpec) -> list[str]:
    """Texts of its records."""
    return [piece.text for piece in pull(sources, spec) if isinstance(piece, RawRecord)]
