"""The children of a whole mesh, declared: three parts and Tidemill's services, with the configuration of each.

The services are known by module name only; each reads its own settings from the environment given here.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from infra.stack import certificates, elasticsearch, kafka, kafka_access, triton
from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec, Program
from infra.stack.errors import StackError
from infra.stack.layout import Layout, service_path
from infra.stack.private import place_secret
from infra.stack.probes import Probe, every, grpc_health, http_ok, tls_handshake

DOORS_HOST = "TIDEMILL_DOORS_HOST"
"""Environment variable: address that the gateway listens on instead of loopback, such as 0.0.0.0 in a container."""

STORES = ("TIDEMILL_DATABASE_URL", "TIDEMILL_ARTIFACTS_URL", "TIDEMILL_MLFLOW_URI")
"""Environment variables: other stores than files of the mesh's state, such as a PostgreSQL server and a bucket."""

LIVENESS_PARTS, LIVENESS_SERVICES = "TIDEMILL_LIVENESS_PARTS_S", "TIDEMILL_LIVENESS_SERVICES_S"
"""Environment variables: seconds that a part or a service that was ready may fail every probe before it is killed and
started again; 30 and 60 when unset."""

GATEWAY_PROCESSES = "TIDEMILL_GATEWAY_PROCESSES"
"""Environment variable: gateway processes; as many as processors, 4 at most, when unset."""
_USUAL_PROCESSES, _MAX_PROCESSES = 4, 64

PARTS = ("kafka", "elasticsearch", "triton")


@dataclass(frozen=True, slots=True)
class Service:
    """One of Tidemill's processes: `python -m module`.

    gRPC listens on the Unix socket `name`, Prometheus on the port `name`_metrics. The doors are open to more than this
    user: their gRPC and HTTP listen on the ports `name` and `name`_http.
    """

    name: str
    module: str
    needs: frozenset[str]
    uses: frozenset[str] = frozenset()
    metrics_port: int | None = None
    doors: tuple[int, int] | None = None
    """Usual ports of gRPC and HTTP, for a service that other users and machines may call."""
    single_threaded: bool = True
    """Whether its numeric libraries get one thread only; false for a service that computes for minutes."""

    @property
    def ports(self) -> dict[str, int]:
        """Usual port by use."""
        ports = {} if self.metrics_port is None else {f"{self.name}_metrics": self.metrics_port}
        if self.doors is not None:
            ports |= {self.name: self.doors[0], f"{self.name}_http": self.doors[1]}
        return ports

    @property
    def sockets(self) -> dict[str, str]:
        """Name of its socket by use."""
        return {} if self.doors is not None else {self.name: self.name}


SERVICES = (
    Service("telemetry", "services.telemetry", frozenset({"elasticsearch"}), metrics_port=7206),
    Service("ingest", "services.ingest", frozenset({"kafka"}), frozenset({"telemetry"}), metrics_port=7201),
    Service("cleaning", "services.cleaning", frozenset({"kafka"}), frozenset({"telemetry"}), metrics_port=7202),
    Service(
        "training",
        "services.training",
        frozenset({"kafka"}),
        frozenset({"telemetry"}),
        metrics_port=7203,
        single_threaded=False,
    ),
    Service(
        "inference",
        "services.inference",
        frozenset({"kafka", "triton"}),
        frozenset({"telemetry"}),
        metrics_port=7204,
    ),
    Service(
        "pipeline",
        "services.pipeline",
        frozenset({"kafka"}),
        frozenset({"telemetry", "ingest", "cleaning", "training", "inference"}),
        metrics_port=7205,
    ),
    Service(
        "gateway",
        "gateway",
        frozenset({"kafka"}),
        frozenset({"telemetry", "ingest", "cleaning", "training", "inference", "pipeline", "triton"}),
        doors=(7100, 8080),
    ),
)

NAMES = (*PARTS, *(service.name for service in SERVICES))


def specs(layout: Layout, only: Iterable[str] | None = None) -> list[ChildSpec]:
    """The children to run.

    Args:
        layout: where their files lie.
        only: their names; all when None. A child that one of these needs must be named, too.

    Raises:
        StackError: a name is unknown, or an environment variable is wrong.
    """
    wanted = set(NAMES if only is None else only)
    if unknown := wanted - set(NAMES):
        raise StackError(f"No such part: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}.")
    parts = [
        dataclasses.replace(part, liveness_s=_seconds(LIVENESS_PARTS, part.liveness_s))
        for part in (kafka.child(layout), elasticsearch.child(layout), triton.child(layout))
    ]
    children = [*parts, *(_child(layout, service) for service in SERVICES if service.doors is None)]
    gateways = [child for service in SERVICES if service.doors is not None for child in _doors(layout, service)]
    return [child for child in (*children, *gateways) if child.name in wanted or child.name.partition("-")[0] in wanted]


def environment(layout: Layout, addresses: Addresses, service: Service) -> dict[str, str]:
    """The environment variables of a service, in addition to those of this process.

    Args:
        layout: where files lie.
        addresses: of the children that run; what does not run is left out.
        service: the service to configure.

    Raises:
        StackError: a store in this process's environment cannot serve all services.
    """
    if os.environ.get("TIDEMILL_DATABASE_URL", "").startswith("sqlite"):
        raise StackError(
            "TIDEMILL_DATABASE_URL names an SQLite file, which the services cannot share: unset it, and each gets a "
            "file of its own below TIDEMILL_STATE, or name a PostgreSQL database (postgresql://user@host/database)."
        )
    home, state = layout.home, layout.state
    values = {
        "PYTHONPATH": service_path(),
        "PYTHONUNBUFFERED": "1",
        "TIDEMILL_HOME": str(home.root),
        "TIDEMILL_STATE": str(state.root),
        "TIDEMILL_BIND": addresses[service.name],
        "TIDEMILL_DATABASE_URL": f"sqlite:///{state.databases / service.name}.sqlite",
        "TIDEMILL_ARTIFACTS_URL": f"file://{state.artifacts}",
        "TIDEMILL_MODELS_DIR": str(home.models),
        "TIDEMILL_DOWNLOADS_DIR": str(home.downloads),
        "TIDEMILL_DATA_DIR": str(home.data),
        "TIDEMILL_SOURCE_ROOTS_FILE": str(state.source_roots),
        "TIDEMILL_TRITON_REPOSITORY": str(state.triton_repository),
        "TIDEMILL_MODEL_SIGNING_KEY": str(state.model_keys / "signing.pem"),
        "TIDEMILL_TRUSTED_MODEL_KEYS": str(state.model_keys / "trusted"),
        "TIDEMILL_MLFLOW_URI": f"sqlite:///{state.mlflow}",
        "TIDEMILL_METRICS_TOKEN_FILE": str(state.metrics_token),
        "TIDEMILL_PSEUDONYM_KEY_FILE": str(state.pseudonym_key),
        **{name: os.environ[name] for name in STORES if os.environ.get(name)},
    }
    uses = {
        "TIDEMILL_KAFKA_BOOTSTRAP": ("kafka", ""),
        "TIDEMILL_ELASTICSEARCH_URL": ("elasticsearch", "http://"),
        "TIDEMILL_OTLP_ENDPOINT": ("telemetry", ""),
        "TIDEMILL_TRITON_GRPC": ("triton_grpc", ""),
        "TIDEMILL_METRICS_BIND": (f"{service.name}_metrics", ""),
        "TIDEMILL_HTTP_BIND": (f"{service.name}_http", ""),
        **{f"TIDEMILL_{peer.name.upper()}_ADDRESS": (peer.name, "") for peer in SERVICES},
    }
    values |= {key: f"{scheme}{addresses[use]}" for key, (use, scheme) in uses.items() if use in addresses}
    if "elasticsearch" in addresses:
        values |= {
            "TIDEMILL_ELASTICSEARCH_USER": elasticsearch.CALLER,
            "TIDEMILL_ELASTICSEARCH_PASSWORD_FILE": str(state.elasticsearch_password),
        }
    if "kafka" in addresses:
        values |= {
            "TIDEMILL_KAFKA_USER": kafka_access.MESH,
            "TIDEMILL_KAFKA_PASSWORD_FILE": str(kafka_access.password_file(state, kafka_access.MESH)),
        }
    if not os.environ.get("TIDEMILL_PEER_CERT"):
        files = zip(("CERT", "KEY", "CA"), certificates.shown(state.peer_keys), strict=True)
        values |= {f"TIDEMILL_PEER_{what}": str(path) for what, path in files}
    if service.doors is not None and (host := os.environ.get(DOORS_HOST)):
        values |= {
            "TIDEMILL_BIND": f"{host}:{addresses.ports[service.name]}",
            "TIDEMILL_HTTP_BIND": f"{host}:{addresses.ports[f'{service.name}_http']}",
        }
    if service.single_threaded:
        values |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    return values


def _child(layout: Layout, service: Service) -> ChildSpec:
    return ChildSpec(
        name=service.name,
        ports=service.ports,
        sockets=service.sockets,
        prepare=partial(_prepare, layout, service),
        probe=grpc_health(service.name),
        needs=service.needs,
        uses=service.uses,
        stop_grace_s=30.0,
        liveness_s=_seconds(LIVENESS_SERVICES, 60.0),
    )


def _doors(layout: Layout, service: Service) -> list[ChildSpec]:
    """The processes of a service with doors: children of their own, which share its ports.

    Each is probed on a socket of its own, for at the ports any of them may answer.
    """
    processes = gateway_processes()
    return [
        dataclasses.replace(
            _child(layout, service),
            name=service.name if number == 1 else f"{service.name}-{number}",
            ports=service.ports if number == 1 else {},
            sockets={f"{service.name}_process_{number}": f"{service.name}-{number}"},
            prepare=partial(_prepare_door, layout, service, number, processes),
            probe=_door_probe(service, number, processes),
        )
        for number in range(1, processes + 1)
    ]


def _door_probe(service: Service, number: int, processes: int) -> Probe:
    probe, door = grpc_health(f"{service.name}_process_{number}"), f"{service.name}_http"
    if processes > 1:
        return probe
    if os.environ.get("TIDEMILL_TLS_CERT"):
        return every(probe, tls_handshake(service.name), tls_handshake(door))
    return every(probe, http_ok(door, "/healthz"))


def gateway_processes() -> int:
    """How many gateway processes share the ports.

    Raises:
        StackError: the environment variable is wrong.
    """
    text = os.environ.get(GATEWAY_PROCESSES) or str(min(_USUAL_PROCESSES, len(os.sched_getaffinity(0))))
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= _MAX_PROCESSES:
        raise StackError(f"{GATEWAY_PROCESSES} must be a number from 1 to {_MAX_PROCESSES}, not {text!r}.")
    return int(text)


def _prepare_door(layout: Layout, service: Service, number: int, processes: int, addresses: Addresses) -> Program:
    program = _prepare(layout, service, addresses)
    values = {
        GATEWAY_PROCESSES: str(processes),
        "TIDEMILL_GATEWAY_PROCESS": str(number),
        "TIDEMILL_GATEWAY_SOCKETS": str(addresses.sockets[f"{service.name}_process_{number}"].parent),
    }
    return dataclasses.replace(program, environment={**program.environment, **values})


def _seconds(variable: str, usual: float) -> float:
    text = os.environ.get(variable) or str(usual)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise StackError(f"{variable} must be a number of seconds above 0, not {text!r}.")
    return seconds


def _prepare(layout: Layout, service: Service, addresses: Addresses) -> Program:
    for folder in (layout.state.databases, layout.state.artifacts, layout.home.models):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.environ.get("TIDEMILL_PEER_CERT"):
        certificates.place(layout.state.peer_keys)
    for secret in (layout.state.metrics_token, layout.state.pseudonym_key):
        secret.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place_secret(secret)
    return Program(
        command=(sys.executable, "-m", service.module),
        environment={**os.environ, **environment(layout, addresses, service)},
        folder=layout.state.root,
    )
