"""What a model that classifies says of texts, whichever task it was trained for."""

from __future__ import annotations

from collections.abc import Sequence

from services.serving.app.ports import InferenceServer
from services.serving.domain.answer import Classified, Task, classified, multi_labelled
from services.serving.domain.route import RoutedVersion


async def predicted(server: InferenceServer, version: RoutedVersion, texts: Sequence[str]) -> list[Classified]:
    """A label for each text, or its labels or spans, in order.

    Raises:
        NotLoadedError: the server does not have the version.
    """
    if version.task is Task.TOKEN_CLASSIFICATION:
        return [Classified("", 0.0, text=row, spans=row.spans) for row in await server.recognize(version, texts)]
    named = multi_labelled if version.task is Task.MULTI_LABEL_CLASSIFICATION else classified
    return [named(version.labels, row) for row in await server.classify(version, texts)]
