"""Lines 8 and 9: processes die or are told to stop under load, and no caller notices but by the clock."""

import time
from itertools import pairwise
from random import Random

from tests.chaos.cluster import Part
from tests.chaos.harness import Harness
from tests.chaos.report import Row
from tests.chaos.servers import until
from tests.chaos.serving.callers import Load, mixed
from tests.chaos.serving.fleet import Fleet

CALLERS = 16
DEADLINE = 30.0
"""Seconds; what the service sets for a caller who sets none."""


def kills(h: Harness, fleet: Fleet) -> list[Row]:
    """kill -9 of one of two inference workers, the next one when the last is back."""
    rng, times = h.random(8), h.times(20)
    fleet.publish("killed", layers=4)
    waits: list[float] = []
    with Load(fleet, mixed("killed"), seed=f"{h.seed}-8", callers=CALLERS) as load:
        for number in range(times):
            h.tell(f"kill -9 of a worker: {number} of {times}", number / times)
            time.sleep(rng.uniform(0.3, 1.0))
            died = time.monotonic()
            (victim := rng.choice(fleet.workers)).kill()
            victim.start()
            fleet.wait_for(victim)
            until(lambda: min(load.asked.values()) > died, DEADLINE + 10, "everybody to be answered")  # noqa: B023
            waits.append(max(call.seconds for call in load.calls if call.ended > died))
    silence = _silence(load)
    return [
        Row(
            8,
            f"requests of {CALLERS} callers while one of 2 inference workers was killed (kill -9) {times} times",
            f"{len(load.calls):,}",
            f"0 failed within their deadline of {DEADLINE:.0f} s",
            f"{load.told()} failed",
            not load.failures,
        ),
        Row(
            8,
            "the slowest request around a kill; the longest time without any answer",
            str(times),
            f"under {DEADLINE:.0f} s",
            f"median {sorted(waits)[len(waits) // 2]:.1f} s, longest {max(waits):.1f} s; {silence:.1f} s",
            max(waits) < DEADLINE,
        ),
    ]


def _silence(load: Load) -> float:
    ends = sorted(call.ended for call in load.calls)
    return max(after - before for before, after in pairwise(ends))


def terminations(h: Harness, fleet: Fleet) -> list[Row]:
    """SIGTERM of a gateway (callers move to the other one), then of a worker; each comes back before the next."""
    rng, times = h.random(9), h.times(20, 2)
    fleet.publish("stopped", layers=4)
    rows = []
    for what, parts in (("a gateway", [g.part for g in fleet.gateways]), ("an inference worker", fleet.workers)):
        codes, seconds = [], []
        with Load(fleet, mixed("stopped"), seed=f"{h.seed}-9-{what}", callers=CALLERS) as load:
            for number in range(times):
                h.tell(f"SIGTERM of {what}: {number} of {times}", number / times)
                gone, code = _restart(fleet, parts[number % 2], rng)
                codes.append(code)
                seconds.append(gone)
        rows.append(
            Row(
                9,
                f"requests of {CALLERS} callers while {what} of 2 was told to stop (SIGTERM) {times} times",
                f"{len(load.calls):,}",
                "0 failed, no connection reset",
                f"{load.told()} failed; slowest {load.quantile(1):.1f} s; gone within {max(seconds):.1f} s, "
                f"exit codes {sorted(set(codes))}",
                not load.failures and set(codes) == {0},
            )
        )
    return rows


def _restart(fleet: Fleet, part: Part, rng: Random) -> tuple[float, int]:
    """Seconds to its exit, and the exit code."""
    time.sleep(rng.uniform(0.3, 1.0))
    began = time.monotonic()
    code = fleet.terminate(part)
    gone = time.monotonic() - began
    part.start()
    fleet.wait_for(part)
    return gone, code
