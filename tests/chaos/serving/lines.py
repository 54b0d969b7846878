"""The serving scenarios as the long run calls them: each in a fleet of its own."""

from collections.abc import Callable

from tests.chaos.harness import Harness, Scenario
from tests.chaos.report import Row
from tests.chaos.serving.faults import kills, terminations
from tests.chaos.serving.fleet import Fleet
from tests.chaos.serving.memory import budget, counts, memory
from tests.chaos.serving.traffic import swaps, traffic


def _in_fleet(scenario: Callable[[Harness, Fleet], list[Row]]) -> Scenario:
    def run(h: Harness) -> list[Row]:
        with h.fleet(scenario.__name__) as fleet:
            return scenario(h, fleet)

    return run


def _memory(h: Harness) -> list[Row]:
    settings = {"SESSION_MEMORY_BYTES": str(budget(counts(h)[1]))}
    with h.fleet("memory", gateways_count=1, workers_count=1, settings=settings) as fleet:
        return memory(h, fleet)


SERVING: dict[int, Scenario] = {
    8: _in_fleet(kills),
    9: _in_fleet(terminations),
    10: _in_fleet(swaps),
    11: _in_fleet(traffic),
    12: _memory,
}
