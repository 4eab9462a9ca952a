"""The children of a whole mesh, declared: three parts and Tidemill's services, with the configuration of each.

The services are known by module name only; each reads its own settings from the environment given here.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

from infra.stack import certificates, elasticsearch, kafka, kafka_access, triton
from infra.stack.addresses import Addresses
from infra.stack.autoscaler import Demand, ProcessRange, Scaling, Windows
from infra.stack.child import ChildSpec, Program
from infra.stack.demand import MessagesWaiting, ProcessorShare
from infra.stack.errors import StackError
from infra.stack.layout import Layout, service_path
from infra.stack.private import place_secret
from infra.stack.probes import Probe, every, grpc_health, http_ok, tls_handshake
from services.kit.bus.topics import RECORDS_RAW

DOORS_HOST = "TIDEMILL_DOORS_HOST"
"""Environment variable: address that the gateway listens on instead of loopback, such as 0.0.0.0 in a container."""

STORES = ("TIDEMILL_DATABASE_URL", "TIDEMILL_ARTIFACTS_URL", "TIDEMILL_MLFLOW_URI")
"""Environment variables: other stores than files of the mesh's state, such as a PostgreSQL server and a bucket."""

LIVENESS_PARTS, LIVENESS_SERVICES = "TIDEMILL_LIVENESS_PARTS_S", "TIDEMILL_LIVENESS_SERVICES_S"
"""Environment variables: seconds that a part or a service that was ready may fail every probe before it is killed and
started again; 30 and 60 when unset."""

SCALE_UP, SCALE_DOWN = "TIDEMILL_SCALE_UP_S", "TIDEMILL_SCALE_DOWN_S"
"""Environment variables: seconds that a load must last until a service gets a process, or loses one, where their number
is a range; 10 and 120 when unset."""

_USUAL_GATEWAYS, _MAX_GATEWAYS = 4, 64
_MESSAGES_PER_PROCESS = 1000
"""Records that wait for each process of cleaning before another one starts: a few batches."""
_GATEWAY_FULL = 0.7
"""Share of a processor at which a gateway process has enough to do: beyond it, answers begin to wait for each other."""

PARTS = ("kafka", "elasticsearch", "triton")


@dataclass(frozen=True, slots=True)
class Scaled:
    """A service that may have several processes: children `NAME`, `NAME-2` and so on, each probed on its own socket.

    A variable has their number, or a range such as `1-4`, within which the load decides.
    """

    usual: Callable[[], int]
    """Number of processes when the variable is unset."""
    limit: int
    demand: Callable[[Layout], Demand]


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
    scaled: Scaled | None = None
    """How its processes are counted, where it may have several."""

    @property
    def ports(self) -> dict[str, int]:
        """Usual port by use."""
        ports = {} if self.metrics_port is None else {f"{self.name}_metrics": self.metrics_port}
        if self.doors is not None:
            ports |= {self.name: self.doors[0], f"{self.name}_http": self.doors[1]}
        return ports

    @property
    def processes_variable(self) -> str:
        """Environment variable with the number of its processes."""
        return f"TIDEMILL_{self.name.upper()}_PROCESSES"

    @property
    def sockets(self) -> dict[str, str]:
        """Name of its socket by use."""
        return {} if self.doors is not None else {self.name: self.name}


def _gateways() -> int:
    return min(_USUAL_GATEWAYS, len(os.sched_getaffinity(0)))


def _records_waiting(layout: Layout) -> Demand:
    return MessagesWaiting("cleaning", layout.state.metrics_token, "tidemill-cleaning", _MESSAGES_PER_PROCESS)


SERVICES = (
    Service("telemetry", "services.telemetry", frozenset({"elasticsearch"}), metrics_port=7206),
    Service("ingest", "services.ingest", frozenset({"kafka"}), frozenset({"telemetry"}), metrics_port=7201),
    Service(
        "cleaning",
        "services.cleaning",
        frozenset({"kafka"}),
        frozenset({"telemetry"}),
        metrics_port=7202,
        scaled=Scaled(lambda: 1, RECORDS_RAW.partitions, _records_waiting),
    ),
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
        scaled=Scaled(_gateways, _MAX_GATEWAYS, lambda layout: ProcessorShare(_GATEWAY_FULL)),
    ),
)

NAMES = (*PARTS, *(service.name for service in SERVICES))


def specs(layout: Layout, only: Iterable[str] | None = None, running: Collection[str] | None = None) -> list[ChildSpec]:
    """The children to run.

    Args:
        layout: where their files lie.
        only: their names; all when None. A child that one of these needs must be named, too.
        running: the children of a mesh that runs, which decide how many processes a service has; when None, the
            environment does.

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
    children = [*parts, *(child for service in SERVICES for child in _children(layout, service, running))]
    return [child for child in children if child.name.partition("-")[0] in wanted]


def scalings(layout: Layout, only: Iterable[str] | None = None) -> list[Scaling]:
    """The services of `specs(layout, only)` whose number of processes follows their load.

    Raises:
        StackError: an environment variable is wrong.
    """
    wanted = set(NAMES if only is None else only)
    found: list[Scaling] = []
    for service in SERVICES:
        if service.scaled is None or service.name not in wanted:
            continue
        processes = _process_range(service, service.scaled)
        if processes.fewest < processes.most:
            names = tuple(_process_name(service, number) for number in range(1, processes.most + 1))
            found.append(Scaling(service.name, names, processes.fewest, partial(service.scaled.demand, layout)))
    return found


def windows() -> Windows:
    """For how long a load must last.

    Raises:
        StackError: an environment variable is wrong.
    """
    usual = Windows()
    rise, fall = _seconds(SCALE_UP, usual.rise_s), _seconds(SCALE_DOWN, usual.fall_s)
    return Windows(min(usual.look_s, rise / 2, fall / 2), rise, fall)


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
        "TIDEMILL_ORIGINALS_KEY_FILE": str(state.originals_key),
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


def _children(layout: Layout, service: Service, running: Collection[str] | None) -> list[ChildSpec]:
    """The processes of a service: children of their own, each probed on a socket of its own.

    Doors have the same ports in all processes, and at a port any of them may answer.
    """
    if service.scaled is None:
        return [_child(layout, service)]
    processes = _process_range(service, service.scaled)
    if running is not None:
        count = max(1, sum(name.partition("-")[0] == service.name for name in running))
        processes = ProcessRange(count, count)
    return [
        dataclasses.replace(
            _child(layout, service),
            name=_process_name(service, number),
            ports=service.ports if number == 1 else {},
            sockets=_sockets(service, number),
            prepare=partial(_prepare_process, layout, service, number, processes.most),
            probe=_process_probe(service, number, processes.most),
            standby=number > processes.fewest,
        )
        for number in range(1, processes.most + 1)
    ]


def _process_range(service: Service, scaled: Scaled) -> ProcessRange:
    text = os.environ.get(service.processes_variable) or str(scaled.usual())
    return ProcessRange.parse(service.processes_variable, text, scaled.limit)


def _process_name(service: Service, number: int) -> str:
    return service.name if number == 1 else f"{service.name}-{number}"


def _own_socket(service: Service, number: int) -> str:
    """The use of the socket of one process; the first one of a service without doors is the service's own."""
    return service.name if service.doors is None and number == 1 else f"{service.name}_process_{number}"


def _sockets(service: Service, number: int) -> dict[str, str]:
    use = _own_socket(service, number)
    return {use: service.name if use == service.name else f"{service.name}-{number}"}


def _process_probe(service: Service, number: int, processes: int) -> Probe:
    probe, door = grpc_health(_own_socket(service, number)), f"{service.name}_http"
    if processes > 1 or service.doors is None:
        return probe
    if os.environ.get("TIDEMILL_TLS_CERT"):
        return every(probe, tls_handshake(service.name), tls_handshake(door))
    return every(probe, http_ok(door, "/healthz"))


def _prepare_process(layout: Layout, service: Service, number: int, processes: int, addresses: Addresses) -> Program:
    program, name = _prepare(layout, service, addresses), service.name.upper()
    use = _own_socket(service, number)
    values = {
        service.processes_variable: str(processes),
        f"TIDEMILL_{name}_PROCESS": str(number),
        f"TIDEMILL_{name}_SOCKETS": str(addresses.sockets[use].parent),
    }
    if service.doors is None:
        values["TIDEMILL_BIND"] = addresses[use]
    environment = {**program.environment, **values}
    if number > 1 and service.doors is None:
        environment.pop("TIDEMILL_METRICS_BIND", None)  # the first process has the port
    return dataclasses.replace(program, environment=environment)


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
