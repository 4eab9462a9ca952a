"""The rules for Prometheus name metrics that the code exports, and hold what their own tests say."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from services.kit.telemetry import schema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "prometheus"
_SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_count", "_sum")}
# Names of a query language, and of labels that stand where a metric could.
_NAME = re.compile(r"[a-z_][a-z0-9_:]*")
_WORDS = {"sum", "by", "rate", "increase", "min_over_time", "histogram_quantile", "or"}


def exported() -> Iterator[str]:
    """What the code makes of prometheus_client's classes, by the names that Prometheus sees."""
    for folder in ("services", "gateway"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "prometheus_client" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SUFFIXES:
                    for name in _names(node.args[0] if node.args else None):
                        yield from (f"{name}{suffix}" for suffix in _SUFFIXES[node.func.id])


def _names(node: ast.expr | None) -> list[str]:
    match node:
        case ast.Constant(value=str(name)):
            return [name]
        case ast.Attribute(attr=name):
            return [getattr(schema, name)]
        case _:  # a loop over names of the schema
            return [schema.DISK_FREE_BYTES, schema.DISK_RESERVE_BYTES]


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked(expression: str) -> set[str]:
    """The metrics of an expression."""
    without_labels = re.sub(r"\{[^}]*\}|\[[^]]*\]|(?:by|without) \([^)]*\)", " ", expression)
    return set(_NAME.findall(without_labels)) - _WORDS


def test_every_metric_of_the_rules_and_the_dashboard_is_exported() -> None:
    known = set(exported()) | {rule["record"] for rule in rules() if "record" in rule}
    panels = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))["panels"]
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    wanted = set().union(*map(asked, expressions))
    assert {"error_rate", "bus_consumer_lag", "bus_dead_letters_total", "drift_found"} <= wanted
    assert wanted - known == set()


def test_buckets_of_the_rules_are_those_of_the_code() -> None:
    asked_for = {float(each) for rule in rules() for each in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert asked_for == {0.1, 0.5, 1, 2, 5}
    assert asked_for <= set(schema.REQUEST_LATENCY_BUCKETS)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("promtool", ("check", "rules", "rules.yml")),
        ("promtool", ("test", "rules", "rules_test.yml")),
        ("promtool", ("check", "config", "--syntax-only", "prometheus.yml")),
        ("amtool", ("check-config", "alertmanager.yml")),
    ],
)
def test_the_tools_of_prometheus_accept_the_files(tool: str, arguments: tuple[str, ...]) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    tested = {item["alertname"] for test in tests for item in test["alert_rule_test"]}
    assert {rule["alert"] for rule in rules() if "alert" in rule} - tested == {"TidemillLostMessages"}
