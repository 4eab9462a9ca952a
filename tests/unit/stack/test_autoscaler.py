"""How many processes follow from a load."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from infra.stack.addresses import Addresses
from infra.stack.autoscaler import ProcessRange, ScalingRule, Windows
from infra.stack.demand import MessagesWaiting, ProcessorShare
from infra.stack.errors import StackError
from infra.stack.probes import ProbeError
from services.kit.telemetry.scraping import ScrapeToken, serve_metrics
from tests.service_process import free_port

WINDOWS = Windows(look_s=5, rise_s=10, fall_s=60)


def followed(rule: ScalingRule, running: int, wanted: Iterable[float]) -> list[int]:
    """The processes after each look, five seconds apart."""
    found = []
    for number, each in enumerate(wanted):
        running = rule.target(5.0 * number, running, each)
        found.append(running)
    return found


def test_a_load_that_lasts_starts_one_process_after_another() -> None:
    rule = ScalingRule(1, 3, WINDOWS)
    assert followed(rule, 1, [2.5] * 8) == [1, 1, 2, 2, 2, 3, 3, 3]


def test_no_more_than_the_most_and_no_fewer_than_the_fewest() -> None:
    assert max(followed(ScalingRule(1, 2, WINDOWS), 1, [9.0] * 20)) == 2
    assert min(followed(ScalingRule(2, 4, WINDOWS), 3, [0.0] * 60)) == 2


def test_a_short_peak_starts_nothing() -> None:
    assert followed(ScalingRule(1, 3, WINDOWS), 1, [0.5, 3, 0.5, 3, 0.5, 3, 0.5]) == [1] * 7


def test_a_short_lull_ends_nothing_and_a_long_one_does() -> None:
    lull = [0.1] * 6
    assert set(followed(ScalingRule(1, 3, WINDOWS), 2, [*lull, 1.5, *lull, 1.5, *lull])) == {2}
    assert followed(ScalingRule(1, 3, WINDOWS), 2, [0.1] * 13)[-2:] == [2, 1]


def test_a_load_that_was_not_known_begins_a_new_window() -> None:
    rule = ScalingRule(1, 3, WINDOWS)
    assert followed(rule, 1, [3, 3]) == [1, 1]
    rule.forget()
    assert rule.target(100, 1, 3) == 1


@pytest.mark.parametrize("text", ["0", "-1", "1-", "-", "3-2", "1-9", "two", "1-2-3", "²", "1 - 2"])
def test_what_is_neither_a_number_nor_a_range_is_refused(text: str) -> None:
    with pytest.raises(StackError, match="TIDEMILL_X must be a number from 1 to 8, or a range of them such as 1-4"):
        ProcessRange.parse("TIDEMILL_X", text, 8)


def test_a_number_is_a_range_of_one() -> None:
    assert ProcessRange.parse("TIDEMILL_X", "3", 8) == ProcessRange(3, 3)
    assert ProcessRange.parse("TIDEMILL_X", "1-8", 8) == ProcessRange(1, 8)


WAITING = {("tidemill-cleaning", "1"): 1500, ("tidemill-cleaning", "2"): 1000, ("another", ""): 9000}


def test_messages_that_wait_are_summed_over_the_processes_of_a_group(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    registry, port = CollectorRegistry(), free_port()
    lag = Gauge("bus_consumer_lag", "Messages that wait", ("group", "process"), registry=registry)
    for labels, messages in WAITING.items():
        lag.labels(*labels).set(messages)
    serve_metrics(f"127.0.0.1:{port}", registry, ScrapeToken(token))
    addresses = Addresses({"cleaning_metrics": port}, {})
    demand = MessagesWaiting("cleaning", token, "tidemill-cleaning", 1000)
    assert demand.processes(addresses, [1]) == (2.5, "2,500 messages wait, 1,000 for each process")
    other = tmp_path / "other"
    other.write_text("another")
    with pytest.raises(ProbeError, match="answered 401"):
        MessagesWaiting("cleaning", other, "tidemill-cleaning", 1000).processes(addresses, [1])
    with pytest.raises(ProbeError, match="its metrics: "):
        demand.processes(Addresses({"cleaning_metrics": free_port()}, {}), [1])


def test_processor_time_counts_only_what_was_used_between_two_looks() -> None:
    demand = ProcessorShare(0.5)
    with pytest.raises(ProbeError, match="known once only"):
        demand.processes(Addresses({}, {}), [os.getpid()])
    wanted, why = demand.processes(Addresses({}, {}), [os.getpid(), 2**22 + 1])
    assert wanted >= 0
    assert "0.5 are enough for each" in why
