"""Served files are overwritten, Triton is frozen, model processes are killed: no wrong answer and no endless wait."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from infra.stack import client
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from services.kit.config import home_dir
from tests.integration.inference.builds import make_classifier
from tests.integration.inference.conftest import BuildFolder, InferenceProcess
from tests.load.watch import ended, processes
from tests.waiting import wait_until

pytestmark = pytest.mark.real
DEADLINE_S = 60.0


class Served:
    """A classifier with two versions on a Triton of its own: 1 says positive, 2 says negative to good words."""

    def __init__(self, stack: StackState, state: Path, folder: Path) -> None:
        self.stack, self.state = stack, state
        self.artifacts = folder / "artifacts"
        self.positive = BuildFolder(self.artifacts / "positive", make_classifier(self.artifacts / "positive"))
        self.turned = BuildFolder(self.artifacts / "turned", make_classifier(self.artifacts / "turned", weight=-2.0))
        self.service = InferenceProcess(stack, folder, "http://127.0.0.1:9", self.artifacts)
        self.service.start()
        self.service.publish("classifier", self.positive)
        self.service.publish("classifier", self.turned)

    def predict(self) -> Any:
        """A prediction, or its error."""
        return self.ask("good room")

    def ask(self, text: str) -> Any:
        """Like `predict`, for a given text."""
        try:
            return self.service.stub.Predict(
                pb.PredictRequest(model="models/classifier", texts=[text]), timeout=DEADLINE_S
            )
        except grpc.RpcError as error:
            return error

    def label(self, text: str = "good room") -> str:
        """The label of the first prediction that succeeds."""
        answer = wait_until(
            lambda: None if isinstance(found := self.ask(text), grpc.RpcError) else found, patience_s=60
        )
        return f"{answer.model_version.rpartition('/')[2]} {answer.predictions[0].label}"

    def triton(self) -> psutil.Process:
        """Triton's process now."""
        pid = client.status(self.state, home_dir()).children["triton"].pid
        assert pid is not None
        return psutil.Process(pid)

    def file(self, number: int) -> Path:
        """The file of a version that Triton reads."""
        return self.stack.triton_repository / f"classifier.{number}" / str(number) / "build" / "openvino_model.bin"

    def version(self, number: int) -> model_pb2.ModelVersion:
        """The version as the service reports it."""
        found = self.service.stub.ListModelVersions(
            pb.ListModelVersionsRequest(model="models/classifier"), timeout=10
        ).model_versions
        version: model_pb2.ModelVersion = next(v for v in found if v.name.endswith(f"/{number}"))
        return version

    def model_processes(self) -> list[psutil.Process]:
        """The processes of the classifier in Triton, not the shells that started them."""
        found: list[psutil.Process] = []
        for process in self.triton().children(recursive=True):
            # Skips processes that have ended since, and zombies that Triton has not reaped.
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and "python_backend_stub" in "".join(process.cmdline()[:1]):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    # A stack of its own: freezing a shared Triton would disturb other tests.
    with running_parts({"kafka", "triton"}, folder / "stack", own=True) as stack:
        served = Served(stack, folder / "stack", folder)
        yield served
        assert served.service.stop() == 0


def _overwrite(file: Path, content: bytes) -> None:
    """Overwrites a file in place, as an editor or a broken copy does: the inode stays the same."""
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def _retry_info(error: Any) -> bool:
    status: Any = rpc_status.from_call(error)
    return any(detail.Unpack(error_details_pb2.RetryInfo()) for detail in status.details)


def test_a_served_file_that_is_overwritten_never_answers(served: Served) -> None:
    assert served.label() == "2 negative"
    artefact = (served.turned.path / "openvino_model.bin").read_bytes()
    # A complete, loadable model: without digests Triton would serve it silently.
    _overwrite(served.file(2), (served.positive.path / "openvino_model.bin").read_bytes())
    served.triton().kill()
    assert served.label() == "2 negative"
    assert (served.turned.path / "openvino_model.bin").read_bytes() == artefact
    assert served.file(2).read_bytes() == artefact
    log = (served.service.folder / "inference.log").read_text()
    assert "BUILD_DAMAGED" in log
    assert "openvino_model.bin is damaged: expected" in log
    assert served.version(2).integrity.state == model_pb2.Integrity.STATE_VERIFIED


@contextmanager
def _frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        # The supervisor may have restarted it in the meantime.
        if process.is_running():
            process.resume()


def test_callers_of_a_frozen_triton_get_unavailable_long_before_their_deadline(served: Served) -> None:
    assert served.label() == "2 negative"
    with _frozen(served.triton()), ThreadPoolExecutor(8) as pool:
        # Requests that were waiting when it froze, and later ones.
        for _ in range(3):
            begun = time.monotonic()
            for error in pool.map(lambda _: served.predict(), range(8)):
                assert isinstance(error, grpc.RpcError)
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error.details()
                assert _retry_info(error)
            # Not a speed: an answer near the deadline would be the fault itself.
            assert time.monotonic() - begun < DEADLINE_S / 4
    assert served.label() == "2 negative"


@contextmanager
def _asked_all_the_time(served: Served) -> Iterator[list[Any]]:
    """Sends 50 requests per second, alternating HTTP and gRPC; the list collects their errors."""
    ended = threading.Event()
    failed: list[Any] = []
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["good room"]}]}

    def ask(number: int, http: httpx.Client) -> None:
        if number % 2:
            answer = http.post("/v2/models/classifier/infer", json=body)
            if answer.status_code != 200 or answer.json()["outputs"][0]["data"] != ["negative"]:
                failed.append(answer.text)
        elif isinstance(error := served.predict(), grpc.RpcError):
            failed.append(error)

    def load() -> None:
        number = 0
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{served.service.http}", timeout=60) as http,
            ThreadPoolExecutor(16) as pool,
        ):
            while not ended.wait(0.02):
                number += 1
                asked.append(pool.submit(ask, number, http))

    asked: list[Future[None]] = []
    thread = threading.Thread(target=load)
    thread.start()
    try:
        wait_until(lambda: len(asked) > 50)
        yield failed
        already = len(asked)
        wait_until(lambda: len(asked) > already + 50)
    finally:
        ended.set()
        thread.join()
    for future in asked:
        future.result()


def test_callers_do_not_notice_that_the_control_plane_is_frozen_and_killed(served: Served) -> None:
    assert served.label() == "2 negative"
    with _asked_all_the_time(served) as failed:
        assert served.service.process is not None
        frozen = psutil.Process(served.service.process.pid)
        frozen.suspend()
        with _asked_all_the_time(served) as meanwhile:
            pass
        assert meanwhile == []
        served.service.kill()
        with _asked_all_the_time(served) as meanwhile:
            pass
        assert meanwhile == []
        served.service.start()
    assert failed == []


def test_a_gateway_that_starts_while_the_control_plane_is_down_serves(served: Served) -> None:
    assert served.label() == "2 negative"
    served.service.kill()
    try:
        for _ in range(2):
            served.service.stop_gateway()
            served.service.start_gateway()
            answer = served.predict()
            assert not isinstance(answer, grpc.RpcError), answer
            assert answer.model_version == "models/classifier/versions/2"
        with pytest.raises(grpc.RpcError) as caught:
            served.version(2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        # A model's process dies, too; its death is reported as soon as the control plane is back.
        for process in served.model_processes():
            process.kill()
        assert isinstance(served.ask("a text that no cache holds"), grpc.RpcError)
    finally:
        served.service.start()
    assert served.label("a good text that no cache holds") == "2 negative"


def test_callers_of_a_killed_model_process_get_unavailable_and_it_comes_back(served: Served) -> None:
    assert served.label() == "2 negative"
    codes: set[grpc.StatusCode] = set()
    silent: list[Any] = []
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(4):
            request = pb.PredictRequest(model="models/classifier", texts=[f"good {round_} {n}" for n in range(64)])

            def ask(_: int, request: Any = request) -> grpc.StatusCode:
                try:
                    served.service.stub.Predict(request, timeout=60)
                except grpc.RpcError as error:
                    # A refused caller learns when to come again.
                    if error.code() is grpc.StatusCode.UNAVAILABLE and not _retry_info(error):
                        silent.append(error.details())
                    return error.code()
                return grpc.StatusCode.OK

            asked = [pool.submit(ask, n) for n in range(16)]
            if round_ == 0:
                for process in served.model_processes():
                    process.kill()
            codes |= {future.result() for future in asked}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.UNAVAILABLE in codes
    assert silent == []
    assert served.label() == "2 negative"


def test_callers_over_http_learn_when_to_come_again_after_a_model_process_was_killed(served: Served) -> None:
    assert served.label() == "2 negative"
    refused: list[httpx.Response] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{served.service.http}", timeout=60) as http:
        for process in served.model_processes():
            process.kill()

        def asked(number: int) -> httpx.Response:
            # Not one that a cache holds.
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [f"good over http {number}"]}
            return http.post("/v2/models/classifier/infer", json={"inputs": [tensor]})

        for number in range(200):
            answer = asked(number)
            if answer.status_code != 200:
                refused.append(answer)
            elif refused:
                break
    assert refused
    assert {answer.status_code for answer in refused} == {503}, refused[0].text
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert served.label() == "2 negative"


def test_a_model_process_that_dies_is_started_by_the_service_alone(served: Served) -> None:
    assert served.label() == "2 negative"
    served.service.kill()
    dead = served.model_processes()
    assert dead
    before = processes(served.stack)
    for process in dead:
        process.kill()
    wait_until(lambda: not served.model_processes())
    # Tests that watch a mesh under load see it.
    assert {process.pid for process in dead} <= {process.pid for process in ended(served.stack, before)}
    # Called directly, Triton neither answers nor restarts the process: nothing unverified is loaded.
    tensor = triton.InferInput("text", [1, 1], "BYTES")
    with triton.InferenceServerClient(served.stack.triton_grpc) as direct:
        tensor.set_data_from_numpy(np.array([["a text that no cache holds"]], dtype=object))
        for _ in range(3):
            # It refuses, or returns OK without outputs.
            with suppress(triton.InferenceServerException):
                assert direct.infer("classifier.2", [tensor], client_timeout=30).as_numpy("scores") is None
    assert served.model_processes() == []
    served.service.start()
    assert served.label() == "2 negative"


def test_the_version_before_serves_when_artefact_and_copy_are_damaged(served: Served) -> None:
    assert served.label() == "2 negative"
    backup = served.artifacts.parent / "backup"
    shutil.copytree(served.turned.path, backup)
    for file in (served.file(2), served.turned.path / "openvino_model.bin"):
        content = file.read_bytes()
        _overwrite(file, content[: len(content) // 2])
    served.triton().kill()
    wait_until(lambda: served.version(2).state == model_pb2.ModelVersion.STATE_FAILED, patience_s=60)
    assert served.label() == "1 positive"
    failed = served.version(2)
    assert failed.integrity.state == model_pb2.Integrity.STATE_DAMAGED
    assert "openvino_model.bin is damaged: expected" in failed.integrity.message
    assert "serves in its place" in failed.message
    with pytest.raises(grpc.RpcError) as caught:
        served.service.publish("classifier", served.turned)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = error_details_pb2.ErrorInfo()
    failed_call: Any = caught.value
    status: Any = rpc_status.from_call(failed_call)
    assert any(detail.Unpack(info) for detail in status.details)
    assert (info.reason, info.metadata["file"]) == ("BUILD_DAMAGED", "openvino_model.bin")
    # The repaired build becomes a new version.
    shutil.rmtree(served.turned.path)
    backup.rename(served.turned.path)
    assert served.service.publish("classifier", served.turned).model_version.name.endswith("/3")
