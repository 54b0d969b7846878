"""Lines 10 and 11: aliases move under load; shares, sticky keys, shadows and rollback through real processes."""

import re
import time
from collections import Counter
from dataclasses import dataclass
from random import Random

from tests.chaos.harness import Harness
from tests.chaos.report import Row
from tests.chaos.servers import until
from tests.chaos.serving.callers import Call, Load, Question, mixed
from tests.chaos.serving.fleet import WORDS, Fleet

CALLERS = 16
REMEMBERED = 2.0
"""Seconds for which a gateway goes on with what a name meant; the one that moved the alias follows at once."""
LOOKUP = 0.5
"""Seconds that a look into the database may take, on cores that are full: it remembers what held when it began."""
VERSIONS = 3


@dataclass(frozen=True)
class Move:
    """A PUT, from its start to its answer; by the gateway at `port`."""

    began: float
    returned: float
    model: str
    port: int


def swaps(h: Harness, fleet: Fleet) -> list[Row]:
    """Every tenth time the alias rests long enough for every gateway to have followed."""
    rng, times = h.random(10), h.times(200, 10)
    fleet.publish("swapped", VERSIONS, layers=1)
    fleet.point("swapped", version=1)
    moves = [Move(0.0, 0.0, "swapped:1", 0)]
    with Load(fleet, mixed("swapped@production"), seed=f"{h.seed}-10", callers=CALLERS) as load:
        for number in range(times):
            h.tell(f"model swaps: {number} of {times}", number / times)
            at, version = rng.randrange(len(fleet.gateways)), number % VERSIONS + 1
            began = time.monotonic()
            fleet.point("swapped", gateway=at, version=version)
            moves.append(Move(began, time.monotonic(), f"swapped:{version}", fleet.gateways[at].port))
            time.sleep(REMEMBERED + LOOKUP + 0.5 if number % 10 == 9 else rng.uniform(0.0, 0.2))
    late = [call for call in load.calls if not call.problem and not current(call, moves)]
    settled = sum(_settled(call, moves) for call in load.calls)
    return [
        Row(
            10,
            f"requests while an alias went to and fro between {VERSIONS} versions {times} times",
            f"{len(load.calls):,}",
            "0 failed, no answer of mixed versions",
            f"{load.told()} failed or mixed",
            not load.failures,
        ),
        Row(
            10,
            f"those that began over {REMEMBERED + LOOKUP:g} s after a move (at the gateway that moved it: at once)",
            f"{settled:,}",
            "all by the new version",
            f"{len(late)} by an older one",
            not late and settled > 0,
        ),
    ]


def _allowed(call: Call, moves: list[Move]) -> set[str]:
    """The versions that the alias may have meant to this call's gateway at some moment of the call."""
    found = set()
    for move, after in zip(moves, [*moves[1:], None], strict=True):
        grace = REMEMBERED + LOOKUP if after and after.port != call.port else 0.0
        if move.began <= call.ended and (after is None or call.started < after.returned + grace):
            found.add(move.model)
    return found


def current(call: Call, moves: list[Move]) -> bool:
    """Whether the alias meant, or was still allowed to mean, the version that answered."""
    return call.model in _allowed(call, moves)


def _settled(call: Call, moves: list[Move]) -> bool:
    return len(_allowed(call, moves)) == 1


def traffic(h: Harness, fleet: Fleet) -> list[Row]:
    """Two gateways; each draws for itself, and they agree on sticky keys."""
    asked = h.times(2000, 400)
    fleet.publish("canary", 2)
    fleet.point("canary", weights={"1": 0.9, "2": 0.1})
    time.sleep(REMEMBERED + LOOKUP)
    h.tell("canary", 0.1)
    plain = _ask(fleet, asked)
    share = plain["canary:2"] / asked * 100
    h.tell("sticky keys", 0.4)
    first, again = ([_ask_one(fleet, f"user-{n}", gateway) for n in range(asked // 10)] for gateway in (0, 1))
    moved = sum(a != b for a, b in zip(first, again, strict=True))
    h.tell("shadow", 0.6)
    fleet.point("canary", version=1, shadow=2)
    time.sleep(REMEMBERED + LOOKUP)
    shadowed = _ask(fleet, asked)
    compared = _compared(fleet, asked)
    h.tell("rollback", 0.9)
    answer = fleet.ask("POST", "/v1/models/canary/aliases/production/rollback")
    back = answer.json()
    ok = answer.status_code == 200 and back["weights"] == {"1": 0.9, "2": 0.1} and back["shadow"] is None
    return [
        Row(11, "a canary of 10 %, over 2 gateways", f"{asked:,}", "8 to 12 %", f"{share:.1f} %", 8 <= share <= 12),
        Row(
            11,
            "sticky keys, asked of one gateway and of the other",
            str(len(first)),
            "the same version, both versions used",
            f"{moved} differ, {len(set(first))} versions",
            not moved and len(set(first)) == 2,
        ),
        Row(
            11,
            "requests with a shadow version of other labels",
            f"{asked:,}",
            "no answer is the shadow's; every copy compared in /metrics",
            f"{shadowed['canary:2']} of the shadow, compared: {dict(compared)}",
            set(shadowed) == {"canary:1"} and compared == {"no": asked},
        ),
        Row(11, "one rollback call", "1", "weights and shadow as before", "as before" if ok else answer.text, ok),
    ]


def _ask(fleet: Fleet, times: int) -> Counter[str]:
    """Which versions answered calls without a key, the gateways in turn."""
    return Counter(_ask_one(fleet, None, number % len(fleet.gateways)) for number in range(times))


def _ask_one(fleet: Fleet, sticky: str | None, gateway: int) -> str:
    question = Question("canary", (Random(sticky).randrange(WORDS),), (2,))
    headers = {"x-sticky-key": sticky} if sticky else {}
    answer = fleet.ask("POST", "/predict", gateway=gateway, json=question.body(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert not (problem := question.problem(answer.json(), fleet.labels)), problem
    model: str = answer.json()["model"]
    return model


def _compared(fleet: Fleet, expected: int) -> Counter[str]:
    """Copies by what came of them, over all gateways, once there are enough."""
    found: Counter[str] = Counter()

    def all_counted() -> bool:
        found.clear()
        for gateway in range(len(fleet.gateways)):
            page = fleet.ask("GET", "/metrics", gateway=gateway).text
            for line in re.findall(r"^modelwright_shadow_inputs_total\{.*canary:2.*", page, re.MULTILINE):
                labels, _, value = line.rpartition(" ")
                found[re.findall(r'agree="(\w+)"', labels)[0]] += int(float(value))
        return found.total() >= expected

    until(all_counted, 30, f"{expected} copies to be compared")
    return +found
