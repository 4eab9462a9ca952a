"""The servicer beside changes that take long."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any, cast

from tidemill.inference.v1 import inference_service_pb2 as pb

from services.inference.app.publishing import Publishing
from services.inference.app.reconciling import Reconciler
from services.inference.app.route_book import RouteBook
from services.inference.domain.model import Model
from services.inference.domain.route import Cause
from services.inference.entrypoints.servicer import InferenceServicer

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class SlowPublishing:
    """Changes wait until the test lets them go; reads answer at once."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def unpublish(self, model: str, traceparent: str, cause: Cause) -> Model:
        self.go.wait(60)
        return Model(model, NOW, NOW)

    def get(self, model: str) -> Model:
        return Model(model, NOW, NOW)


class Call:
    """A call without metadata."""

    def invocation_metadata(self) -> tuple[()]:
        return ()


async def test_changes_that_wait_for_each_other_delay_no_reader() -> None:
    publishing = SlowPublishing()
    servicer: Any = InferenceServicer(cast(Publishing, publishing), cast(Reconciler, None), RouteBook())
    changes = [
        asyncio.create_task(servicer.UnpublishModel(pb.UnpublishModelRequest(model="models/m"), Call()))
        for _ in range(100)
    ]
    try:
        await asyncio.sleep(0)  # all of them ask
        async with asyncio.timeout(20):
            found = await servicer.GetModel(pb.GetModelRequest(name="models/m"), None)
    finally:
        publishing.go.set()
        await asyncio.gather(*changes)
    assert found.model.name == "models/m"
