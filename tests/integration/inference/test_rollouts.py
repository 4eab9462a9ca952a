"""New versions on their way to simulated users, on the real parts: who is promoted, who is rolled back, and why."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as cleaning_grpc
from tidemill.inference.v1 import inference_service_pb2 as inference_pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from tidemill.ingest.v1 import source_service_pb2_grpc as source_grpc
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1 import rollout_service_pb2 as rollout_pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle, PipelineSpec
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill.pipeline.v1.rollout_service_pb2_grpc import RolloutServiceStub
from tidemill.training.v1 import training_service_pb2 as training_pb
from tidemill.training.v1 import training_service_pb2_grpc as training_grpc
from tidemill.training.v1.run_pb2 import Report, Run

from tests.integration.inference.builds import make_classifier
from tests.integration.inference.conftest import BuildFolder, Builds, InferenceProcess
from tests.integration.pipeline.conftest import Peers
from tests.integration.pipeline.test_service import spec
from tests.service_process import ServiceProcess
from tests.unit.pipeline.peers import report
from tests.waiting import wait_for, wait_until

pytestmark = pytest.mark.real

USERS = 1200
ENDED = (ModelRollout.STATE_PROMOTED, ModelRollout.STATE_ROLLED_BACK)
LONG = " ".join(["the room is good and lovely"] * 5)


@dataclass
class Trainer(Peers):
    """Ingest, cleaning and training: a run ends at once with the build that the test has set."""

    build: BuildFolder | None = None

    def WatchRun(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        assert self.build is not None
        found = report(int8=0.2)
        found["variants"][0] |= {"uri": f"file://{self.build.path}", "digest": self.build.digest}
        made = json_format.ParseDict(found, Report())
        yield training_pb.WatchRunResponse(run=Run(name="runs/r1", state=Run.STATE_SUCCEEDED, report=made))


@dataclass
class Product:
    """A pipeline service between a trainer and real inference, and users who like what is right."""

    inference: InferenceProcess
    pipeline: ServiceProcess
    trainer: Trainer
    model: str
    asked: dict[str, list[str]] = field(default_factory=dict)
    """Versions that each user got, in order."""

    def __post_init__(self) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{self.pipeline.port}", [("grpc.max_reconnect_backoff_ms", 500)])
        self.stub: Any = PipelineServiceStub(channel)
        self.rollouts: Any = RolloutServiceStub(channel)

    def spec(self, name: str) -> PipelineSpec:
        value = spec(name)
        value.gate.max_quality_loss = 1
        value.rollout.model = f"models/{self.model}"
        steps = {
            "shadow": {"min_minutes": 0, "min_answers": 20},
            "canary": {"steps": [{"share": 0.2, "until": {"min_minutes": 0, "min_answers": 20}}]},
            "ab": {"until": {"min_minutes": 0, "min_answers": 200}},
            # The machine of a test is busy with others.
            "guard_rails": {"max_latency_ratio": 0},
        }
        return json_format.ParseDict({"rollout": steps}, value)

    def train(self, build: BuildFolder) -> Cycle:
        """A cycle that publishes a build, to its end."""
        self.trainer.build = build
        name = f"product-{uuid.uuid4().hex[:8]}"
        request = pb.CreateCycleRequest(spec=self.spec(name))
        begun = self.stub.CreateCycle(request, timeout=30, wait_for_ready=True).cycle
        cycle: Cycle = wait_for(
            lambda: self.stub.GetCycle(pb.GetCycleRequest(name=begun.name), timeout=30, wait_for_ready=True).cycle,
            lambda found: found.state != Cycle.STATE_RUNNING,
        )
        assert cycle.state == Cycle.STATE_SUCCEEDED, cycle.failure
        return cycle

    def rollout(self, cycle: Cycle) -> ModelRollout:
        request = rollout_pb.GetRolloutRequest(name=cycle.stages[4].resources[0])
        found: ModelRollout = self.rollouts.GetRollout(request, timeout=30, wait_for_ready=True).rollout
        return found

    def use(self, users: int, text: str = "the room is good", right: str = "positive") -> None:
        """Users ask once each, all at the same time of day, and judge what they got."""
        judgements = []
        for number in range(users):
            user = f"user-{number}"
            request = inference_pb.PredictRequest(model=f"models/{self.model}", texts=[text])
            try:
                answer = self.inference.stub.Predict(request, timeout=60, metadata=(("x-user-id", user),))
            except grpc.RpcError:
                continue  # the sabotaged version; its users come back later
            self.asked.setdefault(user, []).append(answer.model_version)
            item = answer.predictions[0]
            liked = item.label == right and number % 10 > 0
            judgements.append(pb.Judgement(answer=item.answer, rating=1 if liked else -1))
        for at in range(0, len(judgements), 500):
            batch = pb.BatchRecordFeedbackRequest(judgements=judgements[at : at + 500])
            self.stub.BatchRecordFeedback(batch, timeout=60, wait_for_ready=True)

    def use_until(self, cycle: Cycle, step: int, users: int, **how: str) -> ModelRollout:
        """Users ask again and again until the roll-out has left a step, or has ended."""

        def look() -> ModelRollout | None:
            self.use(users, **how)
            found = self.rollout(cycle)
            return found if found.step > step or found.state in ENDED else None

        return wait_until(look, patience_s=300)

    def trail(self, resource: str) -> list[Any]:
        """Audit entries about a resource, oldest first."""
        request = rollout_pb.ListAuditEntriesRequest(resource=resource, page_size=1000)
        return list(reversed(self.rollouts.ListAuditEntries(request, timeout=30).entries))


@pytest.fixture
def product(inference: InferenceProcess, builds: Builds, model: str, tmp_path: Path) -> Iterator[Product]:
    trainer = Trainer()  # type: ignore[abstract]  # what no test calls answers UNIMPLEMENTED
    server = grpc.server(futures.ThreadPoolExecutor(16))
    ingest_grpc.add_IngestServiceServicer_to_server(trainer, server)
    source_grpc.add_SourceServiceServicer_to_server(trainer, server)
    cleaning_grpc.add_CleaningServiceServicer_to_server(trainer, server)
    training_grpc.add_TrainingServiceServicer_to_server(trainer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    settings = {
        "TIDEMILL_KAFKA_BOOTSTRAP": inference.stack.kafka_bootstrap,
        "TIDEMILL_DATABASE_URL": f"sqlite:///{tmp_path}/pipeline.sqlite",
        "TIDEMILL_INFERENCE_ADDRESS": f"127.0.0.1:{inference.control_port}",
        "TIDEMILL_ARTIFACTS_URL": tmp_path.as_uri(),
        **{f"TIDEMILL_{peer}_ADDRESS": address for peer in ("INGEST", "CLEANING", "TRAINING")},
    }
    pipeline = ServiceProcess("pipeline", tmp_path, settings)
    pipeline.start()
    yield Product(inference, pipeline, trainer, model)
    pipeline.kill()
    server.stop(None).wait()


@pytest.mark.slow
def test_users_decide_who_is_promoted_and_who_is_rolled_back(product: Product, builds: Builds) -> None:
    first = product.train(builds.turned)
    assert not first.stages[4].resources  # nothing serves beside which it could be introduced
    worse, better = (f"models/{product.model}/versions/{number}" for number in (1, 2))

    # A better version: shadow, canary, comparison, promoted. The service is killed at each step.
    cycle = product.train(builds.positive)
    for step in range(3):
        product.pipeline.kill()
        product.pipeline.start()
        found = product.use_until(cycle, step, 60 if step == 0 else 200 if step == 1 else USERS)
    assert (found.state, found.candidate, found.champion) == (ModelRollout.STATE_PROMOTED, better, worse)
    assert f"{better} is better than {worse}: share of accepted answers 0." in found.reason
    # Who once had the new version never lost it again.
    for versions in product.asked.values():
        assert versions == sorted(versions)
    actions = [entry.action for entry in product.trail(found.name)]
    assert actions == ["rollout.create", "rollout.begin", "rollout.step", "rollout.step", "rollout.promote"]
    wait_until(lambda: "route.PromoteVersion" in [e.action for e in product.trail(f"models/{product.model}")])

    # A worse one, good offline: rolled back, with what the users said as the reason.
    cycle = product.train(builds.turned)
    for step in range(3):
        if (found := product.use_until(cycle, step, 60 if step == 0 else USERS)).state in ENDED:
            break
    assert found.state == ModelRollout.STATE_ROLLED_BACK
    assert f"{worse} is worse than {better}" in product.trail(found.name)[-1].reason
    product.asked.clear()
    wait_until(lambda: product.rollout(cycle).applied or None)
    product.use(50)
    assert {version for versions in product.asked.values() for version in versions} == {better}


def test_a_sabotaged_version_is_rolled_back_by_the_guard_rail_and_a_person_is_obeyed(
    product: Product, builds: Builds
) -> None:
    product.train(builds.positive)
    folder = builds.root / f"sabotaged-{product.model}"
    broken = BuildFolder(folder, make_classifier(folder, positions=20))
    cycle = product.train(broken)
    found = product.use_until(cycle, 0, 40, text=LONG)
    assert found.state == ModelRollout.STATE_ROLLED_BACK
    entry = product.trail(found.name)[-1]
    assert (entry.actor, entry.action, entry.facts["guard_rail"]) == ("mesh", "rollout.rollback", "max_error_rate")
    assert len(product.asked) == 40  # it failed on copies only

    # The same version again: out of the shadow by texts that it can read; then a person rolls it back.
    wait_until(lambda: product.rollout(cycle).applied or None)
    cycle = product.train(broken)
    assert product.use_until(cycle, 0, 60).step == 1
    request = rollout_pb.RollBackRolloutRequest(name=product.rollout(cycle).name, reason="Anna saw something.")
    back = product.rollouts.RollBackRollout(request, timeout=30).rollout
    assert (back.state, back.applied) == (ModelRollout.STATE_ROLLED_BACK, True)
    product.asked.clear()
    product.use(30, text=LONG)
    assert {version for versions in product.asked.values() for version in versions} == {back.champion}
    assert product.trail(back.name)[-1].reason == "Anna saw something."
