"""Callers at every door of a mesh at once; each notes what it was promised, so that it can be looked for afterwards."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tritonclient.grpc as triton
from kafka import KafkaProducer
from kafka.errors import KafkaError
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.inference.v1 import inference_service_pb2 as inference_pb
from tidemill.inference.v1 import model_pb2
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tritonclient.utils import InferenceServerException

from infra.stack.state import StackState
from services.kit.bus.topics import INBOUND
from tests.faults.reconciler import Ledger
from tests.load.small_models import CLASSIFIER, WRITER

SOURCE, DATASET = "load", "datasets/load"
BUSY = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE"})
"""What a door may answer under load: come again."""
AWAY = BUSY | {"DEADLINE_EXCEEDED", "CANCELLED"}
"""What it may answer while parts of the mesh are killed."""

_OPTIONS = [("grpc.max_reconnect_backoff_ms", 500)]
_CODE_OF_STATUS = {429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_TIMEOUT_S = 30.0
_PAUSE_S = 0.1
_WRITTEN = 8  # tokens of an answer


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


@dataclass
class Tally:
    """What became of the calls at one door."""

    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)


class Caller:
    """One client with connections of its own; a method for each door."""

    def __init__(self, stack: StackState, key: str, name: str, ledgers: Ledgers, answers: deque[str], open_: ExitStack):
        self._name, self._books, self._answers = name, ledgers, answers
        self._metadata = (("authorization", f"Bearer {key}"),)
        address = stack.address("gateway")
        self._channel = open_.enter_context(grpc.insecure_channel(address, _OPTIONS))
        headers = {"authorization": f"Bearer {key}"}
        self._http = open_.enter_context(
            httpx.Client(base_url=f"http://{stack.address('gateway_http')}", headers=headers, timeout=_TIMEOUT_S)
        )
        self._triton = triton.InferenceServerClient(address)
        open_.callback(self._triton.close)
        self._bootstrap = stack.kafka_bootstrap
        self._producer: KafkaProducer | None = None
        self._judged = ("", "")  # the newest feedback's mark and answer
        open_.callback(self._drop_producer)

    def doors(self) -> Mapping[str, Callable[[str], None]]:
        """Each takes a mark of its own; it returns when it was answered.

        Raises:
            RefusedError: it was not.
        """
        return {
            "openai chat": self._chat,
            "openai stream": self._chat_stream,
            "v2 http": self._v2_http,
            "v2 grpc": self._v2_grpc,
            "predict": self._predict,
            "generate": self._generate,
            "stream generate": self._stream_generate,
            "ingest": self._ingest,
            "clean": self._clean,
            "feedback": self._feedback,
            "inbound": self._inbound,
        }

    def _chat_body(self, mark: str, *, stream: bool) -> dict[str, Any]:
        return {
            "model": WRITER,
            "stream": stream,
            "max_tokens": _WRITTEN,
            "messages": [{"role": "user", "content": f"the room {mark}"}],
        }

    def _chat(self, mark: str) -> None:
        self._note_answer(self._post("/v1/chat/completions", self._chat_body(mark, stream=False)).json()["id"])

    def _chat_stream(self, mark: str) -> None:
        body = self._chat_body(mark, stream=True)
        answer = ""
        with _http_errors(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                _refuse(response)
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    self._note_answer(answer)
                    return
                if line.startswith("data: "):
                    piece = json.loads(line.removeprefix("data: "))
                    if error := piece.get("error"):
                        busy = error["type"] == "rate_limit_error"
                        raise RefusedError("RESOURCE_EXHAUSTED" if busy else "UNAVAILABLE", error["message"])
                    answer = piece["id"]
        raise RefusedError("UNAVAILABLE", "the stream ended in the middle")

    def _v2_http(self, mark: str) -> None:
        tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [[f"good room {mark}"]]}
        outputs = self._post(f"/v2/models/{CLASSIFIER}/infer", {"inputs": [tensor]}).json()["outputs"]
        assert any(output["name"] == "scores" for output in outputs)

    def _v2_grpc(self, mark: str) -> None:
        tensor = triton.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[f"good room {mark}"]], dtype=object))
        try:
            result = self._triton.infer(CLASSIFIER, [tensor], headers=dict(self._metadata), client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            raise RefusedError(str(error.status()).removeprefix("StatusCode."), str(error)) from error
        assert result.as_numpy("scores") is not None

    def _predict(self, mark: str) -> None:
        request = inference_pb.PredictRequest(model=f"models/{CLASSIFIER}", texts=[f"good {mark}", f"bad {mark}"])
        answer = self._ask(InferenceServiceStub(self._channel).Predict, request)
        assert [item.label for item in answer.predictions] == ["positive", "negative"]
        for item in answer.predictions:
            self._note_answer(item.answer)

    def _sampling(self) -> model_pb2.SamplingParams:
        return model_pb2.SamplingParams(max_tokens=_WRITTEN)

    def _generate(self, mark: str) -> None:
        request = inference_pb.GenerateRequest(model=f"models/{WRITER}", text=mark, sampling=self._sampling())
        self._note_answer(self._ask(InferenceServiceStub(self._channel).Generate, request).answer)

    def _stream_generate(self, mark: str) -> None:
        request = inference_pb.StreamGenerateRequest(model=f"models/{WRITER}", text=mark, sampling=self._sampling())
        with _rpc_errors():
            call = InferenceServiceStub(self._channel).StreamGenerate(
                request, metadata=self._metadata, timeout=_TIMEOUT_S
            )
            pieces = list(call)
        assert pieces[-1].finish_reason
        self._note_answer(pieces[-1].answer)

    def _ingest(self, mark: str) -> None:
        # Some are too short for the data set.
        text = mark[-6:] if mark.endswith("0") else f"a pushed record {mark}"
        request = ingest_pb.IngestRecordsRequest(
            records=[Record(source=SOURCE, record_id=mark, text=text)], request_id=mark
        )
        self._books.records.sent(mark, text)
        self._ask(IngestServiceStub(self._channel).IngestRecords, request)
        self._books.records.accepted(mark, text)

    def _clean(self, mark: str) -> None:
        request = cleaning_pb.CleanTextRequest(text=f"<p>write to  a@b.org {mark}</p>", dataset=DATASET)
        answer = self._ask(CleaningServiceStub(self._channel).CleanText, request)
        assert answer.text == f"write to [EMAIL] {mark}", answer

    def _feedback(self, mark: str) -> None:
        if not self._answers:
            raise RefusedError("UNAVAILABLE", "no one has had an answer yet")
        # What is sent again under the same id must be the same request, though newer answers have come meanwhile.
        if self._judged[0] != mark:
            self._judged = mark, self._answers[-1]
        request = pipeline_pb.RecordFeedbackRequest(
            request_id=mark, answer=self._judged[1], rating=0.5, author=mark, correction=f"better {mark}"
        )
        self._books.feedback.sent(mark, request.correction)
        self._ask(PipelineServiceStub(self._channel).RecordFeedback, request)
        self._books.feedback.accepted(mark, request.correction)

    def _inbound(self, mark: str) -> None:
        text = f"an event from outside {mark}"
        attributes = {"ce_id": mark, "ce_source": "/load", "ce_type": "t", "ce_specversion": "1.0"}
        headers = [(key, value.encode()) for key, value in attributes.items()]
        headers.append(("content-type", b"application/json"))
        value = json.dumps({"source": SOURCE, "record_id": mark, "text": text}).encode()
        self._books.inbound.sent(mark, text)
        try:
            if self._producer is None:
                self._producer = KafkaProducer(bootstrap_servers=self._bootstrap, acks="all")
            self._producer.send(INBOUND.name, key=mark.encode(), value=value, headers=headers).get(_TIMEOUT_S)
        except KafkaError as error:
            self._drop_producer()
            raise RefusedError("UNAVAILABLE", repr(error)) from error
        self._books.inbound.accepted(mark, text)

    def _drop_producer(self) -> None:
        if self._producer is not None:
            with suppress(KafkaError):
                self._producer.close(timeout=1)
            self._producer = None

    def _ask(self, method: Any, request: Any) -> Any:
        with _rpc_errors():
            return method(request, metadata=self._metadata, timeout=_TIMEOUT_S)

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        with _http_errors():
            response = self._http.post(path, json=body)
        if response.status_code != 200:
            _refuse(response)
        return response

    def _note_answer(self, name: str) -> None:
        name = name if name.startswith("answers/") else f"answers/{name}"
        self._books.answers.accepted(name, name)
        self._answers.append(name)


@contextmanager
def _rpc_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise RefusedError(error.code().name, str(error.details())) from error


@contextmanager
def _http_errors() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise RefusedError("UNAVAILABLE", repr(error)) from error


def _refuse(response: httpx.Response) -> None:
    raise RefusedError(_CODE_OF_STATUS.get(response.status_code, f"HTTP {response.status_code}"), response.text[:500])


class Load:
    """Callers at every door, each with one call after the other; a call that was refused is made again as it was."""

    def __init__(
        self, stack: StackState, key: str, folder: Path, excused: Collection[str] = BUSY, callers: int = 2
    ) -> None:
        self._stack, self._key, self._excused, self._callers = stack, key, excused, callers
        self._run_id = f"{time.time_ns():x}"
        self.ledgers = Ledgers(folder)
        self.tallies: dict[str, Tally] = {}
        self._answers: deque[str] = deque(maxlen=100)
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Callers call as long as the block lasts."""
        threads: list[threading.Thread] = []
        with ExitStack() as open_:
            for number in range(self._callers):
                caller = Caller(self._stack, self._key, f"{number}", self.ledgers, self._answers, open_)
                for door, call in caller.doors().items():
                    tally = self.tallies.setdefault(door, Tally())
                    mark = f"{self._run_id}-{door.replace(' ', '-')}-{number}"
                    threads.append(threading.Thread(target=self._run, args=(call, tally, mark), name=mark))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join()

    def answered(self) -> dict[str, int]:
        """Answered calls by door."""
        return {door: tally.answered for door, tally in self.tallies.items()}

    @property
    def defects(self) -> dict[str, list[str]]:
        """By door, what no load and no fault of a part excuses; the first few of each."""
        return {door: tally.defects[:3] for door, tally in self.tallies.items() if tally.defects}

    def _run(self, call: Callable[[str], None], tally: Tally, mark: str) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                call(f"{mark}-{number}")
            except RefusedError as error:
                tally.refused[error.code] += 1
                if error.code not in self._excused:
                    tally.defects.append(str(error))
                self._stop.wait(_PAUSE_S)
            except Exception as error:
                tally.defects.append(repr(error))
                self._stop.wait(_PAUSE_S)
                number += 1
            else:
                tally.answered += 1
                number += 1
