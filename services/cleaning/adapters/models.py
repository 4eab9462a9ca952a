"""The models that write variants, wherever they run."""

from __future__ import annotations

from services.cleaning.adapters.served_models import ServedModels
from services.cleaning.adapters.translator import Translators
from services.cleaning.engine.augmenter import Translator
from services.cleaning.engine.rewriter import Answer, Query, Question


class AllModels:
    """Implements `services.cleaning.app.ports.Models`."""

    def __init__(self, served: ServedModels, translators: Translators) -> None:
        self._served, self._translators = served, translators

    async def ask(self, question: Query) -> Answer:
        """See the port."""
        if isinstance(question, Question) and isinstance(question.model, Translator):
            return await self._translators.ask(question)
        return await self._served.ask(question)
