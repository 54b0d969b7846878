"""The alert rules of docs/operations.md: PromQL that parses, over metrics, labels and routes that there are."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from app.core.metrics import GatewayMetrics, InferenceMetrics, Later
from app.core.settings import Settings
from app.main import create_app

PAGE = Path(__file__).parents[2] / "docs/operations.md"
TARGET = {"job", "instance"}
"""What Prometheus adds to everything it fetches; `up` it makes itself."""
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def rules() -> list[dict[str, Any]]:
    [section] = re.findall(r"^### Alerts\n(.*?)(?=^##)", PAGE.read_text(), re.M | re.S)
    [block] = re.findall(r"^```yaml\n(.*?)^```$", section, re.M | re.S)
    [group] = yaml.safe_load(block)["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


RULES = pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])


@cache
def exported() -> dict[str, set[str]]:
    """Labels of every sample that a gateway or an inference worker shows."""
    registry = CollectorRegistry()
    InferenceMetrics(registry)
    found = {"up": set(TARGET)}
    for metrics in (GatewayMetrics().registry, registry):
        for metric in metrics._collector_to_names:
            if isinstance(metric, Later):  # shows nothing of its own
                continue
            assert isinstance(metric, MetricWrapperBase)
            for suffix in SUFFIXES[str(metric._type)]:
                labels = {*metric._labelnames, *(["le"] if suffix == "_bucket" else ())}
                found[metric._name + suffix] = labels | TARGET
    return found


def nodes(expression: promql_parser.Expr) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    return found


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    found = [getattr(node, "vector_selector", node) for node in nodes(expression)]
    return [node for node in found if isinstance(node, promql_parser.VectorSelector)]


@RULES
def test_it_asks_for_metrics_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    expression = promql_parser.parse(rule["expr"])
    asked = selectors(expression)
    assert asked
    for selector in asked:
        assert selector.name in exported(), selector.name
        assert {m.name for m in selector.matchers.matchers} <= exported()[selector.name]
    shared = set.intersection(*(exported()[str(selector.name)] for selector in asked))
    grouped = {label for node in nodes(expression) for label in getattr(getattr(node, "modifier", 0), "labels", ())}
    assert grouped <= shared
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= (grouped or shared)


@RULES
def test_its_rates_are_over_counters_and_its_quantiles_over_buckets(rule: dict[str, Any]) -> None:
    for call in nodes(promql_parser.parse(rule["expr"])):
        if isinstance(call, promql_parser.Call):
            names = [str(selector.name) for argument in call.args for selector in selectors(argument)]
            if call.func.name in ("rate", "increase"):
                assert all(name.endswith(("_total", "_bucket", "_sum", "_count")) for name in names)
            elif call.func.name == "deriv":
                assert all(name.endswith("_tokens") for name in names)
            elif call.func.name == "histogram_quantile":
                assert all(name.endswith("_bucket") for name in names)


@RULES
def test_it_is_a_rule_that_prometheus_takes(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Modelwright[A-Z]\w+", rule["alert"])
    assert promql_parser.parse_duration(rule.get("for", "1m")).total_seconds() <= 3600
    assert rule["labels"]["severity"] in ("page", "warn", "info")


def test_its_routes_exist_and_no_name_comes_twice(tmp_path: Path) -> None:
    postgres, valkey = "postgresql://nobody@127.0.0.1:1/nothing", "redis://127.0.0.1:1/0"
    paths = create_app(Settings(home=tmp_path, database_url=postgres, redis_url=valkey)).openapi()["paths"]
    matchers = [
        m for rule in rules() for s in selectors(promql_parser.parse(rule["expr"])) for m in s.matchers.matchers
    ]
    assert {m.value for m in matchers if m.name == "route"} <= paths.keys()
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 8
