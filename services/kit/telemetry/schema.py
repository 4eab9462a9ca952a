"""Names of span attributes and metrics, declared before they are used.

OpenTelemetry's semantic conventions where they have a name, `tidemill.*` elsewhere.
"""

from __future__ import annotations

from typing import Final

ECS_VERSION: Final = "8.17.0"
"""Version of the Elastic Common Schema that log lines and documents follow; ECS requires it in each."""

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_OPERATION: Final = "messaging.operation.type"
MESSAGING_BATCH_COUNT: Final = "messaging.batch.message_count"
MESSAGING_CONSUMER_GROUP: Final = "messaging.consumer.group.name"
MESSAGING_PARTITION: Final = "messaging.destination.partition.id"
GEN_AI_MODEL: Final = "gen_ai.request.model"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"

IMPORT: Final = "tidemill.import"
RUN: Final = "tidemill.run"
CYCLE: Final = "tidemill.cycle"
STAGE: Final = "tidemill.stage"
MODEL_VERSION: Final = "tidemill.model.version"
ANSWER: Final = "tidemill.answer"
API_KEY: Final = "tidemill.api_key"
REQUEST_ID: Final = "tidemill.request_id"
"""The caller's own, `x-request-id`."""

KEPT: Final = "tidemill.kept"
"""Why a span is there although its trace was not sampled: `error` or `slow`. Other spans of the trace are missing."""

RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.grpc.status_code"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"

REQUEST_LATENCY: Final = "request_latency"
REQUESTS: Final = "requests"
REQUEST_ERRORS: Final = "request_errors"
ERROR_RATE: Final = "error_rate"
DOOR_REFUSALS: Final = "door_refusals"
BATCH_REQUESTS: Final = "batch_requests"
BUS_LOST_MESSAGES: Final = "bus_lost_messages"
BUS_DEAD_LETTERS: Final = "bus_dead_letters"
BUS_CONSUMER_LAG: Final = "bus_consumer_lag"
REQUEST_LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TRIGGER_BUDGET_USED: Final = "trigger_budget_used"
DRIFT_P_VALUE: Final = "drift_p_value"
DRIFT_LEVEL: Final = "drift_level"
DRIFT_FOUND: Final = "drift_found"
DISK_FREE_BYTES: Final = "disk_free_bytes"
DISK_RESERVE_BYTES: Final = "disk_reserve_bytes"

TELEMETRY_DOCUMENTS: Final = "telemetry_documents"
TELEMETRY_QUEUE_BYTES: Final = "telemetry_queue_bytes"
TELEMETRY_BULK_LATENCY: Final = "telemetry_bulk_latency"
