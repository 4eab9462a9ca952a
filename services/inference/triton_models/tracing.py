"""Spans of a model inside Triton, as children of the span that the caller names in a request parameter.

Export is batched in a separate thread and never delays a request. Without an endpoint there are no spans.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span

TRACEPARENT = "traceparent"
ENDPOINT_VARIABLE = "TIDEMILL_OTLP_ENDPOINT"
ENDPOINT_PARAMETER = "otlp_endpoint"
# Names as in services.kit.telemetry.schema, which this package cannot import.
MODEL_VERSION = "tidemill.model.version"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
BATCH_COUNT = "tidemill.batch.size"


def otlp_endpoint(config: dict[str, Any]) -> str:
    """Where spans go: the variable of Triton's process, else the parameter of the model's configuration, else none."""
    configured = config.get("parameters", {}).get(ENDPOINT_PARAMETER, {}).get("string_value", "")
    return os.environ.get(ENDPOINT_VARIABLE) or str(configured)


class ModelTracing:
    """Starts spans for the requests of one model version."""

    def __init__(self, model: str, version: str, endpoint: str, log: Callable[[str], None]) -> None:
        """Args:
        model: the version's name in Triton, such as `reviews.3`.
        version: its number.
        endpoint: OTLP/gRPC endpoint; no spans when empty.
        log: takes one line for Triton's log.
        """
        self._model = model.removesuffix(f".{version}")
        self._name = f"models/{self._model}/versions/{version}"
        self._provider: Any = None
        if not endpoint:
            log(f"{self._name}: neither {ENDPOINT_VARIABLE} nor the configuration names an endpoint; no spans are sent")
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from .span_exporter import open_exporter

        attributes = {
            "service.name": "triton",
            "service.namespace": "tidemill",
            "service.instance.id": str(os.getpid()),
        }
        self._provider = TracerProvider(resource=Resource.create(attributes))
        self._provider.add_span_processor(BatchSpanProcessor(open_exporter(endpoint), schedule_delay_millis=500))
        self._tracer = self._provider.get_tracer("tidemill.triton")

    def start(self, verb: str, parameters: str) -> Span | None:
        """Starts the span `triton.<model>.<verb>`; None if nothing is sent or the caller names no trace.

        Args:
            verb: what is done.
            parameters: the request's parameters as Triton gives them, JSON.
        """
        if self._provider is None:
            return None
        parent = json.loads(parameters or "{}").get(TRACEPARENT)
        if not parent:
            return None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({TRACEPARENT: str(parent)})
        span: Span = self._tracer.start_span(
            f"triton.{self._model}.{verb}",
            context=context,
            kind=SpanKind.SERVER,
            attributes={MODEL_VERSION: self._name},
        )
        return span

    def shutdown(self) -> None:
        """Sends what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def end_span(span: Span | None, attributes: dict[str, int | str], error: str = "") -> None:
    """Ends a span, as failed where there is an error."""
    if span is None:
        return
    from opentelemetry.trace import Status, StatusCode

    span.set_attributes(attributes)
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end()
