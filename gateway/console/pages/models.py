"""Models: what serves whom, where a version comes from, and where an answer comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from starlette.responses import Response
from tidemill.cleaning.v1.cleaning_service_pb2 import GetDatasetVersionRequest
from tidemill.inference.v1.inference_service_pb2 import GetRouteRequest, ListModelsRequest, ListModelVersionsRequest
from tidemill.inference.v1.model_pb2 import Integrity, ModelVersion
from tidemill.inference.v1.route_pb2 import Route, RoutedVersion, VersionRole
from tidemill.pipeline.v1.judge_service_pb2 import ListJudgeRatingsRequest
from tidemill.pipeline.v1.pipeline_service_pb2 import GetCapturedAnswerRequest, ListFeedbackRequest
from tidemill.pipeline.v1.rollout_service_pb2 import ListRolloutsRequest
from tidemill.training.v1.run_pb2 import Report, Run
from tidemill.training.v1.training_service_pb2 import GetRunRequest

from gateway.cards import forms
from gateway.cards.model_card import ModelCard
from gateway.cards.report import report_facts
from gateway.console.calls import every_page, may, section, sections
from gateway.console.pages.judges import rating_of
from gateway.console.view import Page, View
from gateway.formats import Status
from services.kit.errors import InvalidArgumentError, NotFoundError

_VERSIONS = 100
_FEEDBACK = 1000
"""Number of the newest feedback of a model that is searched for an answer's: no RPC returns that of one answer."""
_ANSWER = re.compile(r"(?:answers/)?([A-Za-z0-9-]{1,64})")
_INTEGRITY = {
    Integrity.STATE_VERIFIED: Status("files verified", "good"),
    Integrity.STATE_DAMAGED: Status("files damaged", "bad"),
    Integrity.STATE_UNTRUSTED: Status("files not trusted", "bad"),
}
_FORMS: Mapping[str, tuple[Callable[[ModelCard], str], str]] = {
    "html": (forms.html, "text/html"),
    "md": (forms.markdown, "text/markdown"),
}


def role_of(version: RoutedVersion) -> str:
    """What a version does in its route."""
    return VersionRole.Name(version.role).removeprefix("VERSION_ROLE_").lower()


def users_of(version: RoutedVersion, route: Route) -> float:
    """The share of the users that it answers, 0 to 1."""
    total = sum(each.weight for each in route.versions)
    return version.weight / total if total else 0.0


def integrity_of(version: ModelVersion) -> Status:
    """What the last verification of its files found."""
    return _INTEGRITY.get(version.integrity.state, Status("files not verified yet", "idle"))


async def models(view: View) -> Response:
    """All models."""
    request = ListModelsRequest(page_size=200, page_token=view.next_token)
    found = await view.services.inference.ListModels(request)
    return view.page(
        "models.html",
        models=found.models,
        older=found.next_page_token,
        after=view.next_token,
        may_see_answers=may("PipelineService", "GetCapturedAnswer"),
    )


async def model(view: View) -> Response:
    """One model: its route, versions and roll-outs."""
    name = f"models/{view.parameter('model')}"
    request = ListModelVersionsRequest(model=name, page_size=_VERSIONS, page_token=view.next_token)
    listed = await view.services.inference.ListModelVersions(request)
    routed, rolled = await sections(
        view.services.inference.GetRoute(GetRouteRequest(model=name)),
        view.services.rollouts.ListRollouts(ListRolloutsRequest(model=name, page_size=5)),
    )
    versions = listed.model_versions
    if not versions and not routed.found:
        raise NotFoundError(f"The model {view.parameter('model')} does not exist.")
    route = routed.found.route if routed.found else Route()
    return view.page(
        "model.html",
        name=name,
        route=route,
        routed=[(each, role_of(each), users_of(each, route)) for each in route.versions],
        versions=[(each, integrity_of(each)) for each in versions],
        rollouts=rolled.found.rollouts if rolled.found else (),
        older=listed.next_page_token,
        after=view.next_token,
    )


async def version(view: View) -> Response:
    """One version, with its run and its data."""
    name = f"models/{view.parameter('model')}/versions/{view.parameter('version')}"
    found = await _version(view, name)
    made = await section(view.services.training.GetRun(GetRunRequest(name=found.run))) if found.run else None
    run = made.found.run if made is not None and made.found else None
    return view.page(
        "version.html",
        version=found,
        integrity=integrity_of(found),
        run=run,
        run_error=made.error if made is not None else None,
        **(report_facts(Report()) if run is None else report_facts(run.report, run.loss_curve)),
    )


async def _version(view: View, name: str) -> ModelVersion:
    model_name, _, number = name.partition("/versions/")
    request = ListModelVersionsRequest(model=model_name, page_size=1000)
    async for listed in every_page(view.services.inference.ListModelVersions, request):
        for each in listed.model_versions:
            if each.name == name:
                found: ModelVersion = each
                return found
    raise NotFoundError(f"The version {number} of {model_name} does not exist.")


async def run(view: View) -> Response:
    """One run."""
    found = (await view.services.training.GetRun(GetRunRequest(name=f"runs/{view.parameter('run')}"))).run
    refresh = 3 if found.state in (Run.STATE_QUEUED, Run.STATE_RUNNING) else 0
    task, method = found.spec.WhichOneof("task") or "", found.spec.WhichOneof("method") or ""
    shown = report_facts(found.report, found.loss_curve)
    return view.page("run.html", run=found, task=task, method=method, refresh=refresh, **shown)


async def version_card(view: View) -> Response:
    """The card of a version as a file: `card.html`, or `card.md`."""
    name = f"models/{view.parameter('model')}/versions/{view.parameter('version')}"
    found = await _version(view, name)
    if not found.run:
        raise NotFoundError(f"{name} was published without a run, so what it learnt is not known.")
    return await _card(view, found.run, found)


async def run_card(view: View) -> Response:
    """The card of a candidate, as that of a version."""
    return await _card(view, f"runs/{view.parameter('run')}", None)


async def _card(view: View, name: str, version: ModelVersion | None) -> Response:
    made = (await view.services.training.GetRun(GetRunRequest(name=name))).run
    form = view.parameter("form")
    if form not in _FORMS:
        raise NotFoundError(f"There is no card.{form}; the forms are {', '.join(f'card.{each}' for each in _FORMS)}.")
    if made.state != Run.STATE_SUCCEEDED:
        raise NotFoundError(f"{name} has no card: it did not succeed, or has not ended.")
    request = GetDatasetVersionRequest(name=made.spec.dataset.name)
    data = await section(view.services.cleaning.GetDatasetVersion(request))
    card = ModelCard(made, version, data.found.dataset_version if data.found else None)
    file = f"{card.title.partition('/')[2].replace('/versions/', '-')}.{form}"
    write, kind = _FORMS[form]
    return Response(write(card), media_type=kind, headers={"Content-Disposition": f'attachment; filename="{file}"'})


async def answer(view: View) -> Response:
    """A captured answer, with what people said of it and where it comes from."""
    name = f"answers/{view.parameter('answer')}"
    found = (await view.services.pipeline.GetCapturedAnswer(GetCapturedAnswerRequest(name=name))).answer
    origin = await section(_version(view, found.model_version))
    asked = ListFeedbackRequest(model=found.model_version.partition("/versions/")[0], page_size=_FEEDBACK)
    judged = await section(view.services.pipeline.ListFeedback(asked))
    said = await section(view.services.judge.ListJudgeRatings(ListJudgeRatingsRequest(answer=name)))
    return view.page(
        "answer.html",
        answer=found,
        ratings=[(each, rating_of(each)) for each in said.found.ratings] if said.found else [],
        version=origin.found,
        feedback=[each for each in judged.found.feedback if each.answer == name] if judged.found else [],
    )


async def find_answer(view: View) -> Response:
    """Goes to the answer of an id that was typed."""
    found = _ANSWER.fullmatch(view.query("id").strip())
    if found is None:
        raise InvalidArgumentError("The id of an answer has letters, digits and hyphens.", reason="NOT_AN_ANSWER")
    return view.go(f"/answers/{found[1]}")


PAGES = (
    Page("GET", "/models", models),
    Page("GET", "/models/{model}", model),
    Page("GET", "/models/{model}/versions/{version}", version),
    Page("GET", "/models/{model}/versions/{version}/card.{form}", version_card),
    Page("GET", "/runs/{run}", run),
    Page("GET", "/runs/{run}/card.{form}", run_card),
    Page("GET", "/answers", find_answer),
    Page("GET", "/answers/{answer}", answer),
)
