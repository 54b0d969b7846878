"""Holds rows out of the training file: seeded, stratified, and never the same input on both sides.

Knows strata as strings; which label of a row is its stratum, the task says.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from workers.training.data import Example

MAX_AUTO_ROWS = 1000
"""1,000 rows measure an accuracy of 95 % to +-1.4 points (95 % interval); more would cost training."""
AUTO_FRACTION = 0.1


def held_out_rows(fraction: float | str, rows: int) -> int:
    """How many of `rows` to hold out: `auto` is 10 %, at most 1,000; at least 2 unless the fraction is 0."""
    if fraction == 0:
        return 0
    if isinstance(fraction, str):
        return min(MAX_AUTO_ROWS, max(2, round(AUTO_FRACTION * rows)))
    return max(2, round(fraction * rows))


def strata(label_sets: Sequence[Sequence[str]]) -> list[str]:
    """Each row's rarest label, so that rare labels are spread with most care; "" without labels."""
    counts = Counter(label for labels in label_sets for label in labels)
    return [min(labels, key=lambda label: (counts[label], label), default="") for labels in label_sets]


def hold_out(
    examples: Sequence[Example], stratum: Sequence[str], rows: int, seed: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Indices (kept, held out), both ascending; about `rows` are held out.

    Every stratum of at least two distinct inputs gives at least one row and keeps at least one. Rows with
    equal inputs stay together. Quotas follow the largest remainder method.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.key].append(index)
    by_stratum: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_stratum[stratum[members[0]]].append(members)
    names = sorted(by_stratum)
    exact = [rows * len(by_stratum[n]) / len(groups) for n in names]
    quota = np.floor(exact).astype(int)
    most_cut = np.argsort(quota - np.asarray(exact), kind="stable")
    quota[most_cut[: rows - int(quota.sum())]] += 1
    rng = np.random.default_rng(list(seed))
    held: list[int] = []
    for name, wanted in zip(names, quota.tolist(), strict=True):
        inputs = by_stratum[name]
        order = rng.permutation(len(inputs))[: min(max(1, wanted), len(inputs) - 1)]
        held.extend(index for group in order for index in inputs[group])
    out = set(held)
    return [i for i in range(len(examples)) if i not in out], sorted(out)
