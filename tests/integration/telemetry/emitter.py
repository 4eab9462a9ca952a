"""A process of the mesh that logs and traces: `python emitter.py SERVICE OTLP_ENDPOINT LINES SECONDS`.

Prints the id of its one trace. Its spans: `root`, below it one `step` for ten lines, the last of which fails. As a
service does, it lives on when it is done: until its standard input ends.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time

from opentelemetry import trace

from services.kit.telemetry.setup import start_telemetry


def _main(service: str, endpoint: str, lines: int, seconds: float) -> None:
    telemetry = start_telemetry(service, endpoint)
    logger, tracer = logging.getLogger("emitter.work"), trace.get_tracer("emitter")
    with tracer.start_as_current_span("root", attributes={"tidemill.run": "runs/7"}) as root:
        print(f"{root.get_span_context().trace_id:032x}", flush=True)  # noqa: T201 - what the test reads
        for number in range(0, lines, 10):
            with contextlib.suppress(ValueError), tracer.start_as_current_span("step"):
                for each in range(number, min(number + 10, lines)):
                    logger.info("line %d", each, extra={"number": each})
                    time.sleep(seconds / lines)
                if number + 10 >= lines:
                    raise ValueError("the last step fails")
        try:
            raise RuntimeError("on purpose")
        except RuntimeError:
            logger.exception("it broke")
    sys.stdin.read()
    telemetry.shutdown()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
