"""Settings of the ingest service; read by `__main__` only."""

from __future__ import annotations

from pydantic import Field, field_validator

from services.ingest.domain.source_uri import parse_uri
from services.kit.config import ServiceSettings, split_list
from services.kit.network_rules import NetworkRules


class IngestSettings(ServiceSettings):
    """The shared fields and those of ingest."""

    request_retention_s: float = Field(
        86_400.0, gt=0, description="how many seconds a repeated batch is recognised by its request_id"
    )
    accepting_bytes: int = Field(
        128 * 1024**2,
        gt=0,
        description="bytes of pushed records that may wait for Kafka; beyond this, callers are asked to retry",
    )
    concurrent_imports: int = Field(2, ge=1, le=16, description="imports that are pulled in parallel")
    compared_source_bytes: int = Field(
        512 * 1024 * 1024,
        ge=0,
        description="a source up to this size is hashed before CreateImport returns, to find an earlier import of the"
        " same content; a larger one is compared by its store's ETags, or pulled again if it has none",
    )
    data_dir: str = Field("", description="folder of the mesh's own example data, which imports may always read")
    source_roots: str = Field(
        "",
        description="folders, as absolute paths or URLs separated by commas, below which imports may read files "
        "and S3 buckets, in addition to data_dir and what `tidemill run` allowed on this machine; if http(s) URLs are "
        "among them, only URLs below these are fetched",
    )
    source_roots_file: str = Field(
        "", description="file that `tidemill run` adds folders to; set by the stack, none when empty"
    )
    source_hosts: str = Field(
        "",
        description="hosts, addresses and networks (separated by commas; host:port, 10.0.0.0/8:9000, [fd12::/16]:*) "
        "that sources may be fetched from, in addition to public addresses at the ports 80 and 443",
    )
    source_s3_endpoint: str = Field("", description="URL of the S3 store; AWS_ENDPOINT_URL, else Amazon's, when empty")
    source_secrets_file: str = Field(
        "",
        description="JSON file that only its owner may read, with the secrets of sources by name: "
        '{"crm": {"url": "https://api.example.com/v1/", "header": "Authorization", "value": "Bearer …"}}; '
        "a secret is sent to addresses below its url alone",
    )
    source_connect_s: float = Field(10.0, gt=0, le=60, description="timeout for a connection, in seconds")
    source_silence_s: float = Field(
        30.0, gt=0, le=600, description="a source that sends less than 64 KiB within this many seconds fails its import"
    )
    source_file_bytes: int = Field(8 * 1024**3, gt=0, description="limit of one file, decompressed")
    source_import_bytes: int = Field(64 * 1024**3, gt=0, description="limit of one import, decompressed")
    surveyed_at_once: int = Field(
        8, ge=1, le=64, description="sources that are checked in parallel before CreateImport returns"
    )

    @field_validator("source_roots")
    @classmethod
    def _readable(cls, value: str) -> str:
        for root in split_list(value):
            parse_uri(root)
        return value

    @field_validator("source_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        NetworkRules(split_list(value))
        return value
