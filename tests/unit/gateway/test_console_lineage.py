"""The console's pages of models, runs, answers, data sets and records, from real messages."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tidemill.cleaning.v1.cleaning_service_pb2 import (
    DatasetExplanation,
    OriginalKeeping,
    RejectedRecord,
    RejectionSample,
)
from tidemill.cleaning.v1.dataset_pb2 import Dataset, DatasetVersion
from tidemill.inference.v1.inference_service_pb2 import ListModelsResponse, ListModelVersionsResponse
from tidemill.inference.v1.model_pb2 import Integrity, Model, ModelVersion
from tidemill.inference.v1.route_pb2 import Route
from tidemill.pipeline.v1.pipeline_service_pb2 import Feedback
from tidemill.training.v1.run_pb2 import Run

from gateway.cards.report import report_facts
from gateway.console.pages.data import _taught, funnel, original_of, place_of
from gateway.console.pages.models import integrity_of, role_of, users_of
from gateway.figures.marks import share_bar
from gateway.formats import recipe
from services.kit.errors import UnavailableError
from tests.integration.gateway.console_peers import answer, dataset_version, published, record
from tests.integration.gateway.fake_peers import canaries
from tests.unit.cli.cycles import succeeded
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, LONG, rendered, text_of

TEXTS = pytest.mark.parametrize("text", [HOSTILE, LONG, CHINESE])


def finished() -> Run:
    run = Run(name="runs/01jrun", state=Run.STATE_SUCCEEDED, model_version="headlines/3", report=succeeded().report)
    run.spec.dataset.name = "datasets/headlines/versions/7"
    run.spec.base_model = "smollm2"
    run.spec.optimization.max_steps = 1200
    return run


def version_page(version: ModelVersion, run: Run | None, **more: Any) -> str:
    values = {"version": version, "integrity": integrity_of(version), "run": run, "run_error": None}
    made = run or Run()
    return rendered("version.html", **{**values, **report_facts(made.report, made.loss_curve), **more})


def run_page(run: Run) -> str:
    shown = report_facts(run.report, run.loss_curve)
    return rendered("run.html", run=run, task="generation", method="lora", refresh=0, **shown)


def dataset_page(version: DatasetVersion, samples: Sequence[RejectionSample] = ()) -> str:
    values = {"version": version, "parts_": funnel(version), "recipe": recipe(version.spec.operators)}
    values["samples"] = samples
    return rendered("dataset_version.html", models=[("models/m/versions/1", version.name)], refresh=0, **values)


def test_a_version_links_to_its_run_and_its_data() -> None:
    page = version_page(published(), finished())
    for place in ("runs/01jrun", "datasets/headlines/versions/7", "models/headlines"):
        assert f'href="/console/{place}"' in page
    assert "files verified" in page
    assert "over the base model" in page
    damaged = published()
    damaged.integrity.state, damaged.integrity.message = Integrity.STATE_DAMAGED, HOSTILE
    away = version_page(
        damaged, None, run_error=UnavailableError("x", reason="PEER_UNAVAILABLE", metadata={"peer": "training"})
    )
    assert f"files damaged {HOSTILE}" in text_of(away)
    assert "The training service does not answer" in away


def test_a_route_says_who_gets_which_version() -> None:
    route = canaries()
    routed = [(each, role_of(each), users_of(each, route)) for each in route.versions]
    assert [(role, share) for _, role, share in routed] == [("serving", 0.75), ("canary", 0.25), ("shadow", 0.0)]
    values = {"route": route, "routed": routed, "rollouts": [], "older": "", "after": ""}
    page = rendered("model.html", name="models/reviews", versions=[(published(), integrity_of(published()))], **values)
    assert "version 4 canary 25.0% int8" in text_of(page)
    assert "stable is version 3." in text_of(page)
    empty = {**values, "route": Route(), "routed": [], "versions": []}
    assert "No version serves." in rendered("model.html", name="models/reviews", **empty)


def test_a_run_shows_what_it_learnt() -> None:
    shown = text_of(run_page(finished()))
    assert "1,200 steps" in shown
    assert "headlines/versions/7" in shown
    assert "over the base model +0.094" in shown


def test_an_answer_leads_back_to_its_data() -> None:
    page = rendered(
        "answer.html", answer=answer(), version=published(), feedback=[Feedback(rating=-1, comment="no")], ratings=[]
    )
    for place in ("models/headlines/versions/3", "runs/01jrun", "datasets/headlines/versions/7"):
        assert f'href="/console/{place}"' in page
    assert "-1.0" in text_of(page)


def test_a_funnel_begins_with_what_came_in() -> None:
    assert [(part.what, part.count, round(part.share, 3)) for part in funnel(dataset_version())] == [
        ("in", 2225, 1.0),
        ("rejected: exact duplicate", 159, 0.071),
        ("rejected: near duplicate", 4, 0.002),
        ("rejected: too short", 3, 0.001),
        ("for training", 1859, 0.836),
        ("held out", 200, 0.09),
        ("feedback that is measured on", 9, 0.004),
    ]
    augmented = DatasetVersion(records_in=10, train_count=12, variant_counts={"random_swap": 4})
    assert [(part.what, part.count) for part in funnel(augmented)][1:3] == [
        ("for training", 8),
        ("variants by random_swap", 4),
    ]
    shown = text_of(dataset_page(dataset_version()))
    assert "64 correction 9 held back 17 people" in shown
    assert "length_filter" in shown
    assert dataset_page(DatasetVersion(name="datasets/d/versions/1"))


def test_a_record_shows_what_operators_did_to_it() -> None:
    found = record()
    values = {"record": found, "datasets": [(each, place_of(each)) for each in found.datasets]}
    found.original, found.tenant = OriginalKeeping.ORIGINAL_KEEPING_NONE, "acme"
    values["original"] = original_of(found)
    page = rendered("record.html", models=[("models/m/versions/1", "datasets/d/versions/7")], **values)
    assert "<ins>[EMAIL]</ins>" in page
    assert "tenant acme" in text_of(page)
    assert "original not kept" in text_of(page)
    shown = text_of(page)
    assert "for training in version 7" in shown
    assert "models" not in shown.partition("Models that")[2]
    assert place_of(DatasetExplanation()).word == "no version yet"


@TEXTS
def test_texts_stay_texts(text: str) -> None:
    version = ModelVersion(
        name="models/m/versions/1", dataset_version=f"datasets/{text}", run=f"runs/{text}", message=text, digest=text
    )
    assert text_of(version_page(version, None)).count(text) >= 4
    failed = Run(name=f"runs/{text}", state=Run.STATE_FAILED, warnings=[text])
    failed.failure.message = failed.spec.base_model = failed.spec.model_name = text
    assert text_of(run_page(failed)).count(text) >= 5
    captured = answer()
    captured.prompt = captured.text = captured.tenant = text
    given = Feedback(correction=text, comment=text, author=text)
    page = rendered("answer.html", answer=captured, version=None, feedback=[given], ratings=[])
    assert text_of(page).count(text) == 6
    built = dataset_version()
    built.rejected_by_reason[text] = 1
    built.feedback_counts[text] = 1
    built.spec.operators.add(name="regex").params.update({"pattern": text})
    assert text_of(dataset_page(built)).count(text) >= 2
    made = [(built, share_bar(0.5, "good"))]
    listed = Dataset(name=f"datasets/{text}", spec=built.spec)
    values = {"recipe": recipe(built.spec.operators), "versions": made, "older": "", "after": ""}
    assert text in text_of(rendered("dataset.html", dataset=listed, **values))
    assert text in text_of(rendered("datasets.html", datasets=[listed], older="", after="", may_explain=True))


def test_lists_of_nothing_are_pages() -> None:
    assert "No model is published yet." in rendered("models.html", models=[], older="", after="", may_see_answers=False)
    assert "no data sets yet" in rendered("datasets.html", datasets=[], older="", after="", may_explain=False)


def test_each_reason_shows_examples_of_what_was_rejected() -> None:
    records = [RejectedRecord(record="sources/bbc/records/a b", detail=HOSTILE, operator="length_filter")]
    samples = [RejectionSample(reason="too_short", records=records), RejectionSample(reason="gone")]
    page = dataset_page(dataset_version(), samples)
    assert 'href="/console/records?record=sources/bbc/records/a%20b"' in page
    assert "too short" in text_of(page)
    assert HOSTILE in text_of(page)
    assert "gone" not in text_of(page)


async def test_models_of_all_pages_are_listed_as_taught() -> None:
    class Inference:
        """Two pages of models, and two of the versions of each."""

        async def ListModels(self, request: Any) -> ListModelsResponse:  # noqa: N802
            last = request.page_token == "2"
            name = "models/b" if last else "models/a"
            return ListModelsResponse(models=[Model(name=name)], next_page_token="" if last else "2")

        async def ListModelVersions(self, request: Any) -> ListModelVersionsResponse:  # noqa: N802
            last = request.page_token == "2"
            version = ModelVersion(
                name=f"{request.model}/versions/{2 if last else 1}", dataset_version="datasets/d/versions/1"
            )
            return ListModelVersionsResponse(model_versions=[version], next_page_token="" if last else "2")

    view: Any = SimpleNamespace(services=SimpleNamespace(inference=Inference()))
    found = await _taught(view, {"datasets/d/versions/1"})
    assert [name for name, _ in found] == [f"models/{m}/versions/{n}" for m in "ab" for n in (1, 2)]
    assert await _taught(view, {"datasets/d/versions/9"}) == []
