"""What models wrote for variants, in the service's database."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Engine, delete, false, select

from services.cleaning.adapters.record_store import key_parts, upsert_statement
from services.cleaning.adapters.tables import model_answers, raw_records
from services.cleaning.engine.rewriter import Answer, Query
from services.kit.storage.database import read_only, translate_database_errors


class SqlAnswerStore:
    """Implements `services.cleaning.app.ports.AnswerStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def answers(self, dataset: str) -> Mapping[str, Answer]:
        """See the port."""
        columns = (model_answers.c.question, model_answers.c.text, model_answers.c.dropped, model_answers.c.detail)
        query = select(*columns).where(model_answers.c.dataset == dataset)
        with translate_database_errors(), self._reads.connect() as connection:
            return {key: Answer(text, dropped, detail) for key, text, dropped, detail in connection.execute(query)}

    def keep(self, dataset: str, question: Query, answer: Answer) -> None:
        """See the port."""
        source, record_id = question.record
        row = {
            "dataset": dataset,
            "question": question.key,
            "source": source,
            "record_id": record_id,
            "text": answer.text,
            "dropped": answer.dropped,
            "detail": answer.detail,
        }
        present = select(raw_records.c.record_id).where(
            raw_records.c.source == source, raw_records.c.record_id == record_id, raw_records.c.withdrawn == false()
        )
        with translate_database_errors(), self._engine.begin() as connection:
            # Locked, so that an erasure comes before it and is seen, or after it and finds the answer.
            if connection.execute(present.with_for_update()).first() is not None:
                connection.execute(upsert_statement(connection.dialect.name, model_answers, ["text"]), [row])

    def forget(self, dataset: str, keys: Collection[str]) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            for part in key_parts(keys):
                listed = model_answers.c.question.in_(part)
                connection.execute(delete(model_answers).where(model_answers.c.dataset == dataset, listed))
