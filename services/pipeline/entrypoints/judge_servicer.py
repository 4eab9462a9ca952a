# ruff: noqa: N802 - method names follow the contract
"""JudgeService over gRPC: map in, one call, map out."""

from __future__ import annotations

from functools import partial
from typing import Any

from tidemill.pipeline.v1 import judge_service_pb2 as pb
from tidemill.pipeline.v1 import judge_service_pb2_grpc as grpc_stubs

from services.kit.grpc.paging import read_page
from services.kit.ids import ID_PATTERN
from services.kit.threads import in_thread
from services.pipeline.app.judges import Judges
from services.pipeline.domain.judge import JudgeRating
from services.pipeline.entrypoints.judge_mapping import rating_to, view_to

_NAME = "[a-z0-9][a-z0-9-]{0,63}"


class JudgeServicer(grpc_stubs.JudgeServiceServicer):
    """Implements `tidemill.pipeline.v1.JudgeService`."""

    def __init__(self, judges: Judges) -> None:
        self._judges = judges

    async def ListJudges(self, request: pb.ListJudgesRequest, context: Any) -> pb.ListJudgesResponse:
        """Lists judges; the page token is the last one's name."""
        read = in_thread(partial(self._judges.page, request.model))
        page = await read_page(request, f"models/{_NAME}/judges/{_NAME}", read, lambda view: view.judge.name)
        return pb.ListJudgesResponse(judges=map(view_to, page.items), next_page_token=page.next_token)

    async def ListJudgeRatings(self, request: pb.ListJudgeRatingsRequest, context: Any) -> pb.ListJudgeRatingsResponse:
        """Lists ratings; the page token is the last answer's id and its judge."""
        read = in_thread(partial(self._judges.ratings, request.model, request.judge, request.answer))
        page = await read_page(request, f"{ID_PATTERN}/{_NAME}", read, _place)
        return pb.ListJudgeRatingsResponse(ratings=map(rating_to, page.items), next_page_token=page.next_token)


def _place(rating: JudgeRating) -> str:
    return f"{rating.answer.removeprefix('answers/')}/{rating.judge}"
