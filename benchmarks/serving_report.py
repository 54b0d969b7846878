"""What `benchmarks.serving` found, as a table and a plot. Measures nothing."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

NAMES = {"mlserver": "MLServer", "bentoml": "BentoML", "litserve": "LitServe", "ray": "Ray Serve"}


class Measured:
    """Runs by variant or peer; medians over the rounds."""

    def __init__(self, texts: int, rounds: int, seconds: float) -> None:
        self.texts, self.rounds, self.seconds = texts, rounds, seconds
        self._raw: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._served: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)

    def raw(self, variant: str, run: dict[str, Any]) -> None:
        self._raw[variant].append(run)

    def served(self, name: str, connections: int, run: dict[str, float]) -> None:
        self._served[name, connections].append(run)

    def variants(self) -> list[str]:
        return list(self._raw)

    def runs(self) -> list[tuple[str, int]]:
        """(variant or peer, connections) of all that was measured."""
        return list(self._served)

    def provider(self, variant: str) -> str:
        return str(self._raw[variant][0]["provider"])

    def limit(self, variant: str, name: str) -> float:
        return float(statistics.median(run[name] for run in self._raw[variant]))

    def of(self, name: str, connections: int, what: str) -> float:
        return statistics.median(run[what] for run in self._served[name, connections])


def report(found: Measured, arguments: str, image: str | None) -> str:
    """Markdown."""
    command = " ".join(["python -m benchmarks.serving", arguments]).strip()
    lines = [
        "# Serving speed",
        "",
        f"`{command}`: {describe_machine()}.",
        f"MiniLM-L6 under 150 classes, {found.texts:,} utterances of 5 to 25 words; load, service and limit on the",
        f"same cores, medians of {found.rounds} interleaved rounds of {found.seconds:g} s.",
        *(["", f"![Answers a second]({image})"] if image else []),
        "",
        "The limit is the bare runtime in one process, batches side by side as the service runs them, without",
        "tokenizing: batches of 32 as the texts come, and batches cut from 256 texts sorted by length. It is ONNX",
        "Runtime as it comes, on the standard graph; `own` is the same by the engine as the service sets it up",
        "(decision 0011).",
        "",
        "| variant | provider | batches of 32, rows/s | sorted, rows/s | own, sorted | one by one p50 ms | p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in found.variants():
        limits = [found.limit(name, what) for what in ("random", "sorted", "own")]
        single = [found.limit(name, what) * 1000 for what in ("single_p50", "single_p99")]
        row = [name, found.provider(name), *(f"{v:.0f}" for v in limits), *(f"{v:.2f}" for v in single)]
        lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "| server | connections | answers/s | of the limit at 32 | of the sorted limit | of own | p50 ms | p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, connections in found.runs():
        rate, p50, p99 = (found.of(name, connections, what) for what in ("rate", "p50", "p99"))
        own = name if name in found.variants() else "float32"
        shares = [f"{rate / found.limit(own, what):.2f}" for what in ("random", "sorted")]
        shares.append(f"{rate / found.limit(own, 'own'):.2f}" if name in found.variants() else "")
        label = NAMES.get(name, f"Modelwright, {name}")
        row = [label, str(connections), f"{rate:.0f}", *shares, f"{p50 * 1000:.2f}", f"{p99 * 1000:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", *_ratios(found)]
    return "\n".join(lines).rstrip() + "\n"


def _ratios(found: Measured) -> list[str]:
    runs, lines = found.runs(), []
    for name, label in NAMES.items():
        if (name, 64) in runs and ("float32", 64) in runs:
            ratio = found.of("float32", 64, "rate") / found.of(name, 64, "rate")
            lines.append(f"- {ratio:.2f} times {label} at 64 connections, the same graph.")
    if ("auto", 64) in runs and ("float32", 64) in runs:
        ratio = found.of("auto", 64, "rate") / found.of("float32", 64, "rate")
        lines.append(
            f"- {found.provider('auto')}, which `auto` chooses here: {ratio:.2f} times float32 at 64 connections."
        )
    for name in found.variants():
        if (name, 1) in runs:
            over = [(found.of(name, 1, q) - found.limit(name, f"single_{q}")) * 1000 for q in ("p50", "p99")]
            lines.append(
                f"- One connection, {name}: {over[0]:+.2f} ms over the bare runtime at p50, {over[1]:+.2f} at p99."
            )
    return lines


def plot(found: Measured, path: Path) -> None:
    """Answers a second of each server at each number of connections, beside the limits."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "modelwright"  # the same figures, the same file
    from matplotlib import pyplot

    runs = [run for run in found.runs() if run[1] > 1]
    rates = [found.of(*run, "rate") for run in runs]
    labels = [f"{NAMES.get(name, name)}, {connections}" for name, connections in runs]
    colors = ["#999999" if name in NAMES else "#2a6f97" for name, _ in runs]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(runs) + 1.2))
    axes.barh(labels, rates, color=colors)
    axes.invert_yaxis()
    for variant in found.variants():
        limit = found.limit(variant, "sorted")
        axes.axvline(limit, color="#c1121f", linewidth=1)
        axes.annotate(f" limit, {variant}", (limit, -0.7), color="#c1121f", fontsize=7, annotation_clip=False)
    axes.set_xlabel("answers a second (limit: bare runtime, sorted batches)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
