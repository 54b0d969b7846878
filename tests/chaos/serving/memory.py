"""Line 12: many versions, a few of them hot, in one worker that cannot hold them all."""

import os
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from random import Random
from threading import Event, Thread

from tests.chaos.harness import Harness
from tests.chaos.report import Row
from tests.chaos.serving.callers import Load, Question, mixed
from tests.chaos.serving.fleet import WORDS, Fleet
from workers.inference.providers import memory as estimate

LAYERS = 4
"""MiB of one version's graph."""
COLD_SECONDS = 0.25
"""Between two requests for a cold version."""
ROUNDS = 4
"""In turns with and without cold ones: what else the machine does falls on both."""


def budget(versions: int) -> int:
    """Bytes for so many versions, by the worker's own estimate."""
    return versions * estimate("onnxruntime-cpu", int((LAYERS << 20) * 1.02))


def counts(h: Harness) -> tuple[int, int, int]:
    """Hot versions, versions that the worker has room for, all versions."""
    hot = h.times(20, 4)
    return hot, hot + hot // 4, h.times(100, 12)


def memory(h: Harness, fleet: Fleet) -> list[Row]:
    """`fleet` has one worker, whose budget is `budget(room)`."""
    hot, room, total = counts(h)
    rng, seconds = h.random(12), max(1.0, 5.0 * h.scale)
    h.tell(f"publishing {total} versions", 0.05)
    fleet.publish("first", layers=LAYERS)
    fleet.publish("many", total, layers=LAYERS)
    worker = fleet.workers[0]
    with Load(fleet, mixed("first"), seed=f"{h.seed}-12-first"):
        time.sleep(1)
    base = resident(worker.pid)  # with all libraries loaded, and one version
    names = [f"many:{number}" for number in range(1, total + 1)]
    for name in names[:hot]:
        _ask_one(fleet, name, rng, size=256)  # a full batch, for which a session keeps its memory
    cold = cycle(names[hot:])
    phases: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    waited: list[float] = []
    peak = _Peak(lambda: resident(worker.pid))

    def ask(draw: Random) -> Question:
        return _texts(draw.choice(names[:hot]), draw)

    with peak, Load(fleet, ask, seed=f"{h.seed}-12", callers=8, pause=0.005) as load:
        time.sleep(1)
        for number in range(ROUNDS * 2):
            loads = number % 2 == 1
            h.tell("hot versions" + " while cold ones load" * loads, 0.3 + 0.7 * number / ROUNDS / 2)
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                if loads:
                    waited.append(_ask_one(fleet, next(cold), rng))
                time.sleep(COLD_SECONDS)
            phases[loads].append((began, time.monotonic()))
    p50, p99 = ([load.quantile(q, *phases[loads]) * 1000 for loads in (True, False)] for q in (0.5, 0.99))
    grown, allowed = peak.value - base, budget(room)
    return [
        Row(
            12,
            f"memory that a worker adds: {total} versions of {LAYERS} MiB, budget for {room} by its estimate",
            str(total),
            f"at most {allowed >> 20} MiB",
            f"{grown >> 20} MiB ({base >> 20} MiB with one version alone)",
            grown <= allowed,
        ),
        Row(
            12,
            f"requests for {hot} hot versions, of them half the time while {len(waited)} cold ones were loaded",
            f"{len(load.calls):,}",
            "0 failed; p99 at most twice that without",
            f"{load.told()} failed; p99 {p99[0]:.1f} ms, without {p99[1]:.1f} ms (p50 {p50[0]:.1f}, {p50[1]:.1f}); "
            f"cold ones answered within {max(waited):.2f} s",
            not load.failures and p99[0] <= 2 * p99[1],
        ),
    ]


def _texts(name: str, draw: Random, size: int = 1) -> Question:
    words = tuple(draw.randrange(WORDS) for _ in range(size))
    return Question(name, words, tuple(draw.randint(1, 14) for _ in words))


def _ask_one(fleet: Fleet, name: str, rng: Random, size: int = 1) -> float:
    """Seconds to the answer."""
    question, asked = _texts(name, rng, size), time.monotonic()
    answer = fleet.ask("POST", "/predict", json=question.body())
    assert answer.status_code == 200, answer.text
    assert not (problem := question.problem(answer.json(), fleet.labels)), problem
    return time.monotonic() - asked


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The largest of what `look` gave while the block lasted, ten times a second."""

    def __init__(self, look: Callable[[], int]) -> None:
        self._look, self._stopping = look, Event()
        self._thread = Thread(target=self._run, name="peak")
        self.value = 0

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            self.value = max(self.value, self._look())

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
