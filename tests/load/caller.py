"""One client of a mesh with connections of its own, and what it was promised."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import tritonclient.grpc as triton
from kafka import KafkaProducer
from kafka.errors import KafkaError

from infra.stack.state import StackState
from tests.faults.reconciler import Ledger

CLASSIFIER, WRITER = "load-classifier", "load-writer"
SOURCE, DATASET = "load", "datasets/load"
TIMEOUT_S = 30.0

_OPTIONS = [("grpc.max_reconnect_backoff_ms", 500)]
_CODE_OF_STATUS = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


class RefusedError(Exception):
    """A door did not do what it was asked; `code` is the canonical one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass
class Ledgers:
    """What was sent and what was promised, by path."""

    folder: Path
    records: Ledger = field(init=False)
    inbound: Ledger = field(init=False)
    answers: Ledger = field(init=False)
    feedback: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("records", "inbound", "answers", "feedback"):
            setattr(self, name, Ledger(self.folder / name))


class Caller:
    """Connections to both doors and to Kafka, and the ledgers that all callers share."""

    def __init__(self, stack: StackState, key: str, ledgers: Ledgers, answers: deque[str], open_: ExitStack):
        """Args:
        stack: the mesh.
        key: of the doors.
        ledgers: where promises are noted.
        answers: names of the newest answers of all callers, for feedback.
        open_: closes the connections.
        """
        self.ledgers, self._answers = ledgers, answers
        self.metadata = (("authorization", f"Bearer {key}"),)
        address = stack.address("gateway")
        self.channel = open_.enter_context(grpc.insecure_channel(address, _OPTIONS))
        headers = {"authorization": f"Bearer {key}"}
        self.http = open_.enter_context(
            httpx.Client(base_url=f"http://{stack.address('gateway_http')}", headers=headers, timeout=TIMEOUT_S)
        )
        self.triton = triton.InferenceServerClient(address)
        open_.callback(self.triton.close)
        self._bootstrap = stack.kafka_bootstrap
        self._producer: KafkaProducer | None = None
        self._judged: dict[str, str] = {}
        open_.callback(self._drop_producer)

    def ask(self, method: Any, request: Any) -> Any:
        """A call with one request: its response, or the list of them.

        Raises:
            RefusedError: the call failed.
        """
        with rpc_errors():
            found = method(request, metadata=self.metadata, timeout=TIMEOUT_S)
            return list(found) if isinstance(found, Iterator) else found

    def send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """An HTTP request: its response if the status is 200.

        Raises:
            RefusedError: the request failed.
        """
        with http_errors():
            response = self.http.request(method, path, **sent)
        if response.status_code != 200:
            refuse(response)
        return response

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a route answers to a JSON body. Errors as `send`."""
        return self.send("POST", path, json=body).json()

    def publish(self, topic: str, key: str, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """Sends a message to Kafka and waits until it is stored there.

        Raises:
            RefusedError: it may not be stored.
        """
        try:
            if self._producer is None:
                self._producer = KafkaProducer(bootstrap_servers=self._bootstrap, acks="all")
            self._producer.send(topic, key=key.encode(), value=value, headers=headers).get(TIMEOUT_S)
        except KafkaError as error:
            self._drop_producer()
            raise RefusedError("UNAVAILABLE", repr(error)) from error

    def note_answer(self, name: str) -> None:
        """Notes an answer, whose event is promised; feedback may name it from now on."""
        name = name if name.startswith("answers/") else f"answers/{name}"
        self.ledgers.answers.accepted(name, name)
        self._answers.append(name)

    def judged(self, mark: str) -> str:
        """The answer that a feedback is about; the same one if the feedback is sent again.

        Raises:
            RefusedError: there is none yet.
        """
        door = mark.rpartition("-")[0]
        known, _, answer = self._judged.get(door, "").partition(" ")
        if known == mark:
            return answer
        if not self._answers:
            raise RefusedError("UNAVAILABLE", "no one has had an answer yet")
        answer = self._answers[-1]
        self._judged[door] = f"{mark} {answer}"
        return answer

    def _drop_producer(self) -> None:
        if self._producer is not None:
            with suppress(KafkaError):
                self._producer.close(timeout=1)
            self._producer = None


@dataclass(frozen=True, slots=True)
class Door:
    """One way to ask the mesh for something."""

    call: Callable[[Caller, str], None]
    """Takes a mark of its own, which is the same when a refused call is made again; returns when it was answered.

    Raises:
        RefusedError: it was not.
    """
    endpoints: tuple[str, ...]
    """What it calls: a route as `POST /v1/records`, an RPC by its path, or a topic."""


@contextmanager
def rpc_errors() -> Iterator[None]:
    """Raises what gRPC reports as a RefusedError."""
    try:
        yield
    except grpc.RpcError as error:
        raise RefusedError(error.code().name, str(error.details())) from error


@contextmanager
def http_errors() -> Iterator[None]:
    """Raises a broken connection as a RefusedError."""
    try:
        yield
    except httpx.TransportError as error:
        raise RefusedError("UNAVAILABLE", repr(error)) from error


def refuse(response: httpx.Response) -> None:
    """Raises a status as a RefusedError."""
    raise RefusedError(_CODE_OF_STATUS.get(response.status_code, f"HTTP {response.status_code}"), response.text[:500])
