"""Counts that wait until the answer is out."""

from prometheus_client import CollectorRegistry, Counter

from app.core.metrics import Later


def test_they_are_made_before_the_registry_is_read_whatever_one_of_them_raises() -> None:
    registry = CollectorRegistry()
    later = Later(registry)
    counter = Counter("answers", "", registry=registry)
    later(counter.inc, 2)
    later(counter.inc, -1)  # a counter refuses that
    later(counter.inc, 3)
    assert registry.get_sample_value("answers_total") == 5
    later(counter.inc)
    later.settle()
    assert registry.get_sample_value("answers_total") == 6
