"""Batches: every row once, like lengths together, the same for the same seed."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.training.batching import Feature, evaluation_batches, input_tensors, training_batches

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=300)


@given(lengths=lengths, batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_training_batches_hold_every_row_once(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = training_batches(lengths, batch_size, (seed, 1))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert max(map(len, batches)) <= batch_size


@given(lengths=lengths)
def test_evaluation_batches_hold_every_row_once_within_the_token_budget(lengths: list[int]) -> None:
    batches = evaluation_batches(lengths, tokens=128)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(b) * max(lengths[i] for i in b) <= 128 for b in batches)


def test_the_seed_decides_the_order() -> None:
    lengths = list(np.random.default_rng(0).integers(3, 40, 500))
    first, again, other = (training_batches(lengths, 16, seed) for seed in ((1, 1), (1, 1), (1, 2)))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_bucketing_saves_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 3000)
    padded = sum(len(b) * lengths[b].max() for b in training_batches(list(lengths), 32, (0, 0)))
    assert padded / lengths.sum() < 1.05


def test_inputs_are_padded_to_the_longest_row() -> None:
    ids, mask = input_tensors([Feature([1, 2, 3], 0), Feature([4], 0)], 7)
    assert ids.tolist() == [[1, 2, 3], [4, 7, 7]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
