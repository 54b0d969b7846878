"""Batches: every row once, like lengths together, the same for the same seed."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.training.batching import Batch, Feature, evaluation_batches, input_tensors, training_batches
from workers.training.masking import mask_tokens

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


def test_masking_spares_padding_and_the_ends() -> None:
    ids, mask = input_tensors([Feature([1, 5, 5, 5, 2], 0), Feature([1, 5, 2], 0)], 0)
    batch = Batch(ids, mask, torch.zeros(2), tokens=8)
    assert mask_tokens(batch, 0.999, 9, (0,)).input_ids.tolist() == [[1, 9, 9, 9, 2], [1, 9, 2, 0, 0]]
    assert mask_tokens(batch, 0.0, 9, (0,)) is batch


def test_masking_replaces_the_share_it_is_told_and_repeats() -> None:
    ids = torch.ones(100, 102, dtype=torch.int64)
    batch = Batch(ids, torch.ones_like(ids), torch.zeros(100), tokens=10_200)
    first, again, other = (mask_tokens(batch, 0.1, 9, (1, n)).input_ids for n in (1, 1, 2))
    assert 0.08 < (first == 9).float().mean() < 0.12
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_inputs_are_padded_to_the_longest_row() -> None:
    ids, mask = input_tensors([Feature([1, 2, 3], 0), Feature([4], 0)], 7)
    assert ids.tolist() == [[1, 2, 3], [4, 7, 7]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
