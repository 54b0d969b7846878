"""What a storm measured, against what is promised, as Markdown and a plot. Knows no service and makes no load."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Result
from benchmarks.machine import describe_machine
from benchmarks.memory import MIB
from benchmarks.storm import Answer, Storm

LOAD = 0.9
"""Of the load that was meant: with less, because the peak was higher after the storm, the run shows nothing."""
REJECT, MEMORY, NORMAL = 0.020, 100 * MIB, 5.0
"""Promised: seconds for a refusal, bytes more than before, seconds until all is normal again."""
_ACCEPTED, _REFUSED = 200, 429


@dataclass(frozen=True)
class Measured:
    """One scenario. `peak` and `rate` in requests a second; `budget`: seconds of work that the queue may hold."""

    name: str
    times: float
    promised: float
    seconds: float
    rate: float
    peak: float
    alone: Result
    storm: Storm
    memory: dict[str, list[int]]
    budget: float

    @property
    def goodput(self) -> float:
        """Answers a second that came during the storm."""
        inside = [a for a in self.storm.answers if a.status == _ACCEPTED and a.at + a.seconds <= self.seconds]
        return len(inside) / self.seconds

    @property
    def normal_after(self) -> float:
        """Seconds from the end of the storm to the first of three ordinary requests in a row that are answered within
        twice the p99 of a caller alone."""
        limit = 2 * self.alone.quantile(0.99)
        after = sorted(a for a in self.storm.answers if a.at >= self.seconds)
        good = [a.status == _ACCEPTED and a.seconds <= limit for a in after]
        return next((after[n].at - self.seconds for n in range(len(good) - 2) if all(good[n : n + 3])), math.inf)

    def of(self, status: int) -> list[float]:
        """Seconds of the answers with `status` to requests of the storm, in order of size."""
        return sorted(a.seconds for a in self.storm.answers if a.status == status and a.at < self.seconds)


def report(scenarios: Sequence[Measured], command: str, image: str | None) -> str:
    """The page; `image` names the plot beside it."""
    lines = [
        "# Overload",
        "",
        f"Written by `{command}`:",
        f"{describe_machine()}.",
        "MiniLM-L6 under 150 classes, one gateway, one inference worker, one key, load on the same cores.",
    ]
    lines += ["", f"![Answers a second and p99 over time]({image})"] if image else []
    for found in scenarios:
        lines += ["", f"## {found.times:g} times the peak, {found.name}", "", *_table(found), "", _words(found)]
    return "\n".join(lines) + "\n"


def _table(found: Measured) -> list[str]:
    """A promise a row: what, the bound, what was measured, whether it is at most (or at least) the bound."""
    bound = 2 * found.alone.quantile(0.99) + found.budget
    refused = found.of(_REFUSED)
    rows: list[tuple[str, float, float, str]] = [
        ("load, times the peak", -LOAD * found.times, -found.rate / found.peak, ".1f"),
        ("goodput, of the peak", -found.promised, -found.goodput / found.peak, ".2f"),
        ("p99 of accepted, ms", round(bound * 1000), _quantile(found.of(_ACCEPTED), 0.99) * 1000, ".0f"),
        ("p99 of refusals, ms", REJECT * 1000, _quantile(refused, 0.99) * 1000, ".1f"),
        ("longest refusal, ms", REJECT * 1000, _quantile(refused, 1.0) * 1000, ".1f"),
    ]
    for name, used in found.memory.items():
        rows.append((f"{name}: MiB more at most", MEMORY / MIB, (max(used) - used[0]) / MIB, ".0f"))
    rows.append(("normal again after, s", NORMAL, found.normal_after, ".1f"))
    lines = ["| what | promised | measured | kept |", "| --- | --- | --- | --- |"]
    for what, limit, value, form in rows:
        promised, measured = f"{'>=' if limit < 0 else '<='} {abs(limit):g}", format(abs(value), form)
        if math.isnan(value):
            lines.append(f"| {what} | {promised} | none came | |")
        else:
            lines.append(f"| {what} | {promised} | {measured} | {'yes' if value <= limit else '**NO**'} |")
    return lines


def _words(found: Measured) -> str:
    def ms(ordered: Sequence[float], share: float) -> str:
        return f"{_quantile(ordered, share) * 1000:.1f} ms" if ordered else "-"

    alone, late = sorted(found.alone.latencies.get(_ACCEPTED, [])), sorted(found.storm.late)
    statuses = Counter(a.status for a in found.storm.answers if a.at < found.seconds)
    shown = ", ".join(f"{count} x {status or 'connection lost'}" for status, count in sorted(statuses.items()))
    memory = "; ".join(
        f"{name} {used[0] / MIB:.0f} MiB before, {max(used) / MIB:.0f} at most, {used[-1] / MIB:.0f} after"
        for name, used in found.memory.items()
    )
    text = (
        f"Peak {found.peak:.0f}/s; one caller alone p50 {ms(alone, 0.5)}, p99 {ms(alone, 0.99)}; the queue may hold "
        f"{found.budget:.2f} s of work. Asked {found.rate:.0f} times a second for {found.seconds:g} s: {shown}. "
        f"Goodput {found.goodput:.0f}/s; accepted p50 {ms(found.of(_ACCEPTED), 0.5)}; refused p50 "
        f"{ms(found.of(_REFUSED), 0.5)}. Memory: {memory}. "
        f"The generator sent requests p50 {ms(late, 0.5)}, p99 {ms(late, 0.99)}, at most "
        f"{ms(late, 1.0)} late; it used {found.storm.cores:.2f} cores and {found.storm.connections} connections."
    )
    return textwrap.fill(text, 120, break_long_words=False)


def plot(scenarios: Sequence[Measured], path: Path) -> None:
    """Answers a second and p99 of accepted, by the second in which they came; the storm shaded."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "modelwright"  # the same figures, the same file
    from matplotlib import pyplot

    figure, columns = pyplot.subplots(2, len(scenarios), sharex="col", squeeze=False, figsize=(5 * len(scenarios), 5))
    for found, (rates, waits) in zip(scenarios, columns.T, strict=True):
        accepted = _by_second(found.storm.answers, _ACCEPTED)
        refused = _by_second(found.storm.answers, _REFUSED)
        rates.plot([len(seconds) for seconds in accepted], color="#2a6f97", label="answered")
        rates.plot([len(seconds) for seconds in refused], color="#999999", label="refused")
        waits.plot([_quantile(sorted(seconds), 0.99) for seconds in accepted], color="#2a6f97")
        rates.axhline(found.peak, color="#c1121f", linewidth=1, label="peak")
        rates.set(title=f"{found.times:g} times the peak, {found.name}", ylabel="answers a second")
        waits.set(xlabel="seconds", ylabel="p99 of accepted, s")
        rates.legend(fontsize=7)
        for axes in (rates, waits):
            axes.set_ylim(0)
            axes.axvspan(0, found.seconds, color="#eeeeee")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _by_second(answers: Sequence[Answer], status: int) -> list[list[float]]:
    """For each second, how long the answers took that came in it; a second without any stays empty."""
    found: list[list[float]] = [[] for _ in range(1 + max(int(a.at + a.seconds) for a in answers))]
    for answer in answers:
        if answer.status == status:
            found[int(answer.at + answer.seconds)].append(answer.seconds)
    return found


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan
