"""Connects the command line to a mesh: the gateway's address, the API key, and readable errors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.ingest.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.source_service_pb2_grpc import SourceServiceStub
from tidemill.pipeline.v1.exclusion_service_pb2_grpc import ExclusionServiceStub
from tidemill.pipeline.v1.judge_service_pb2_grpc import JudgeServiceStub
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.pipeline.v1.review_service_pb2_grpc import ReviewServiceStub
from tidemill.pipeline.v1.rollout_service_pb2_grpc import RolloutServiceStub
from tidemill.pipeline.v1.trigger_service_pb2_grpc import TriggerServiceStub
from tidemill.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceStub
from tidemill.training.v1.training_service_pb2_grpc import TrainingServiceStub

from gateway.cli.mesh_owner import as_owner
from services.kit.config import home_dir, state_dir
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.kit.grpc.errors import from_rpc_error

USUAL_ADDRESS = "127.0.0.1:7100"
USUAL_HTTP = "127.0.0.1:8080"
_MAX_MESSAGE = 64 * 1024 * 1024


def _local_ports() -> Mapping[str, int]:
    """Ports of this machine's mesh, as its supervisor last wrote them; empty if the stack is not installed."""
    try:
        from infra.stack.layout import Layout
        from infra.stack.state import read_state
    except ModuleNotFoundError:  # the extra `cli` without `stack`: --address names a mesh elsewhere
        return {}
    return read_state(Layout.of(home_dir(), state_dir())).ports


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS settings of the command line."""

    roots: bytes | None
    """Certificates to trust, in PEM; None trusts the authorities that come with gRPC."""
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str = ""
    """The name in the gateway's certificate, if it differs from the address."""

    @classmethod
    def find(cls) -> ClientTls | None:
        """From `TIDEMILL_CA` (a file, or `system`), `TIDEMILL_CLIENT_CERT`, `TIDEMILL_CLIENT_KEY`,
        `TIDEMILL_TLS_SERVER_NAME`; on the gateway's own machine, `TIDEMILL_TLS_CERT` is enough.

        Raises:
            InvalidArgumentError: a file cannot be read.
        """
        given = os.environ.get("TIDEMILL_CA") or os.environ.get("TIDEMILL_TLS_CERT")
        if not given:
            return None
        return cls(
            None if given == "system" else _read(given),
            _read(os.environ.get("TIDEMILL_CLIENT_CERT")),
            _read(os.environ.get("TIDEMILL_CLIENT_KEY")),
            os.environ.get("TIDEMILL_TLS_SERVER_NAME", ""),
        )

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel."""
        return grpc.ssl_channel_credentials(self.roots, self.key, self.certificate)


def _read(path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class Target:
    """The mesh that a command calls."""

    address: str
    """host:port of the gateway's gRPC API."""
    http: str
    """host:port of its HTTP API."""
    key: str | None
    key_file: Path
    tls: ClientTls | None = None
    """None for plain text."""

    @property
    def http_url(self) -> str:
        """URL of the HTTP API."""
        return f"{'http' if self.tls is None else 'https'}://{self.http}"

    @classmethod
    def find(cls, address: str | None, tls: ClientTls | None = None) -> Target:
        """The given address, else this machine's mesh; the API key from the environment, else from this mesh's file.

        Args:
            address: `--address`; the HTTP API is then assumed on the same host, at its usual port.
            tls: TLS settings; None for plain text.
        """
        ports = {} if address else _local_ports()
        grpc_address = address or (f"127.0.0.1:{ports['gateway']}" if "gateway" in ports else USUAL_ADDRESS)
        http = f"127.0.0.1:{ports['gateway_http']}" if "gateway_http" in ports else USUAL_HTTP
        if address:
            http = f"{address.rpartition(':')[0]}:{USUAL_HTTP.rpartition(':')[2]}"
        path = state_dir() / "api-key"
        key = os.environ.get("TIDEMILL_API_KEY")
        if key is None and path.is_file():
            key = path.read_text(encoding="utf-8").strip()
        return cls(grpc_address, http, key, path, tls)


class Connection:
    """An open channel to the gateway. Every call of one connection belongs to one new trace."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.trace_id = secrets.token_hex(16)
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if target.tls is None:
            self._channel = grpc.insecure_channel(target.address, options=options)
        else:
            name = [("grpc.ssl_target_name_override", target.tls.server_name)] if target.tls.server_name else []
            self._channel = grpc.secure_channel(target.address, target.tls.credentials(), options=[*options, *name])
        self.cleaning = CleaningServiceStub(self._channel)
        self.dead_letters = DeadLetterServiceStub(self._channel)
        self.ingest = IngestServiceStub(self._channel)
        self.sources = SourceServiceStub(self._channel)
        self.inference = InferenceServiceStub(self._channel)
        self.pipeline = PipelineServiceStub(self._channel)
        self.exclusion = ExclusionServiceStub(self._channel)
        self.review = ReviewServiceStub(self._channel)
        self.judge = JudgeServiceStub(self._channel)
        self.trigger = TriggerServiceStub(self._channel)
        self.rollouts = RolloutServiceStub(self._channel)
        self.training = TrainingServiceStub(self._channel)
        self.telemetry = TelemetryServiceStub(self._channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The key, the trace context, and a user, so that one version answers all requests of a command."""
        trace = ("traceparent", f"00-{self.trace_id}-{secrets.token_hex(8)}-01")
        common = (trace, ("x-user-id", self.trace_id))
        key = self.target.key
        return common if key is None else (("authorization", f"Bearer {key}"), *common)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translates the mesh's errors into our own."""
        try:
            yield
        except grpc.RpcError as error:
            translated = from_rpc_error(error)
            if isinstance(translated, UnavailableError) and translated.reason == "UNAVAILABLE":
                raise UnavailableError(
                    f"The gateway at {self.target.address} does not answer{_tls_hint(self.target, translated)}. Start "
                    "the mesh with `tidemill up`, or choose another gateway with --address.",
                    reason="GATEWAY_UNAVAILABLE",
                ) from error
            if isinstance(translated, UnavailableError) and translated.reason == "PEER_UNAVAILABLE":
                raise UnavailableError(
                    f"The mesh's {translated.metadata.get('peer', '')} service does not answer; "
                    "`tidemill status` shows every part.",
                    reason=translated.reason,
                ) from error
            raise translated from error


def _tls_hint(target: Target, error: UnavailableError) -> str:
    """The reason of a failed TLS handshake; gRPC says little if one side uses plain text."""
    if target.tls is None:
        return " in plain text (if the gateway uses TLS, set TIDEMILL_CA to the certificate to trust)"
    return f" over TLS: {error.message}"


@contextmanager
def connect(address: str | None) -> Iterator[Connection]:
    """A connection for the length of the block."""
    tls = ClientTls.find()  # before `as_owner`: only root may be able to read these files
    as_owner()
    connection = Connection(Target.find(address, tls))
    try:
        with connection.errors():
            yield connection
    finally:
        connection.close()
