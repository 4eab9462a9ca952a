"""What a model that classifies says of texts, whichever of the two tasks it was trained for."""

from __future__ import annotations

from collections.abc import Sequence

from services.serving.app.ports import InferenceServer
from services.serving.domain.answer import Classified, Task, classified
from services.serving.domain.route import RoutedVersion


async def predicted(server: InferenceServer, version: RoutedVersion, texts: Sequence[str]) -> list[Classified]:
    """A label for each text, or its spans, in order.

    Raises:
        NotLoadedError: the server does not have the version.
    """
    if version.task is Task.TOKEN_CLASSIFICATION:
        return [Classified("", 0.0, text=row, spans=row.spans) for row in await server.recognize(version, texts)]
    return [classified(version.labels, row) for row in await server.classify(version, texts)]
