"""One optimizer step: exact accumulation, clipping, float32 weights under bf16, and the used-rows embedding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.contracts.hyperparameters import Hyperparameters
from tests.toys import build_toy_base
from workers.training.batching import Batch, Feature, input_tensors
from workers.training.embeddings import UsedRows, restore_table, train_used_rows
from workers.training.losses import IGNORED, BinaryCrossEntropy, CrossEntropy
from workers.training.models import Base, TaskModel, build, open_base
from workers.training.objectives.supervised import Supervised
from workers.training.recipe import Recipe, TaskDefaults, TunerRates, resolve

ROWS = [[2, 9, 3], [2, 9, 10, 11, 12, 3], [2, 14, 15, 3], [2, 16, 3]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(build_toy_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(base: Base) -> TaskModel:
    """The same every time, without dropout."""
    torch.manual_seed(0)
    return build(base, 3, pooled=True).eval()


def recipe(**given: Any) -> Recipe:
    return resolve(
        Hyperparameters(n_epochs=5, lr_scheduler_type="constant", learning_rate=1e-2, **given),
        rates=TunerRates(1.0, 1.0),
        task=TaskDefaults(),
        rows=100,
        length=64,
        hidden_size=32,
        can_mask=True,
        bf16_is_faster=False,
        validation_split=0.0,
        test_split=0.0,
    )


def batch(rows: list[int]) -> Batch:
    ids, mask = input_tensors([Feature(ROWS[i], None) for i in rows], 0)
    return Batch(ids, mask, torch.tensor([i % 3 for i in rows]), tokens=0)


def objective(base: Base, **given: Any) -> Supervised:
    return Supervised(model_of(base), CrossEntropy(), recipe(**given), torch.device("cpu"))


def weights(objective: Supervised) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in objective.model.named_parameters()}


def test_accumulated_micro_batches_equal_one_batch(base: Base) -> None:
    # SGD: Adam would turn a rounding difference of a vanishing gradient into a full step.
    whole, parts = (objective(base, optim="sgd", max_grad_norm=0.0) for _ in range(2))
    loss = whole.step([batch([0, 1, 2, 3])])
    torch.testing.assert_close(parts.step([batch([0]), batch([1, 2, 3])]), loss)
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_update(base: Base) -> None:
    run = objective(base, optim="sgd", max_grad_norm=1e-3, weight_decay=0.0)
    before = weights(run)
    run.step([batch([0, 1])])
    moved = torch.stack([(after - before[name]).norm() for name, after in weights(run).items()]).norm()
    assert moved <= 1e-2 * 1e-3 * 1.01


@pytest.mark.parametrize("optim", ["adamw", "adam", "sgd", "adagrad"])
def test_every_optimizer_lowers_the_loss(base: Base, optim: str) -> None:
    run = objective(base, optim=optim)
    losses = [float(run.step([batch([0, 1, 2, 3])])) for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_keeps_float32_weights(base: Base) -> None:
    run = objective(base, mixed_precision="bf16")
    losses = [float(run.step([batch([0, 1, 2, 3])])) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert run.logits(batch([0])).dtype == torch.float32


def test_weight_decay_spares_biases_norms_and_embeddings(base: Base) -> None:
    run = objective(base, weight_decay=0.1)
    spared = {id(p) for group in run.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    names = {name for name, p in run.model.named_parameters() if id(p) in spared}
    assert names == {n for n, p in run.model.named_parameters() if p.ndim == 1 or "embeddings" in n}


def test_the_best_weights_can_be_put_back(base: Base) -> None:
    run = objective(base)
    before = weights(run)
    run.keep()
    run.step([batch([0, 1])])
    assert not torch.equal(weights(run)["classifier.weight"], before["classifier.weight"])
    run.restore()
    assert all(torch.equal(after, before[name]) for name, after in weights(run).items())


def test_training_used_rows_only_gives_the_same_weights(base: Base) -> None:
    plain = objective(base, weight_decay=0.0)
    model = model_of(base)
    train_used_rows(model, (i for row in ROWS for i in row))
    used = Supervised(model, CrossEntropy(), recipe(weight_decay=0.0), torch.device("cpu"))
    embedding = model.encoder.get_submodule("embeddings.word_embeddings")
    assert isinstance(embedding, UsedRows)
    for _ in range(3):
        embedding.train()
        plain.step([batch([0, 1, 2, 3])])
        used.step([batch([0, 1, 2, 3])])
    restore_table(model)
    torch.testing.assert_close(weights(used), weights(plain), atol=1e-6, rtol=1e-5)


def test_evaluation_sees_trained_and_unused_rows(base: Base) -> None:
    model = model_of(base)
    train_used_rows(model, [9])
    embedding = model.encoder.get_submodule("embeddings.word_embeddings")
    assert isinstance(embedding, UsedRows)
    embedding.train()
    with torch.no_grad():
        embedding.rows.fill_(7.0)
    model.eval()
    values = embedding(torch.tensor([9, 20]))
    assert (values[0] == 7.0).all()
    assert (values[1] == embedding.table.weight[20]).all()


def test_a_frozen_table_is_left_alone(base: Base) -> None:
    model = model_of(base).requires_grad_(False)
    train_used_rows(model, [9])
    assert not isinstance(model.encoder.get_submodule("embeddings.word_embeddings"), UsedRows)


def test_losses_ignore_padding_and_weigh_labels() -> None:
    logits, targets = torch.randn(2, 3, 4), torch.tensor([[0, 1, IGNORED], [3, IGNORED, IGNORED]])
    plain, weighted = CrossEntropy(), CrossEntropy(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert plain.weight(targets) == 3
    assert weighted.weight(targets) == 7
    expected = -logits.log_softmax(-1)[[0, 0, 1], [0, 1, 0], [0, 1, 3]]
    torch.testing.assert_close(plain(logits, targets), expected.sum())
    torch.testing.assert_close(weighted(logits, targets), (expected * torch.tensor([1.0, 2.0, 4.0])).sum())


def test_smoothing_pulls_binary_targets_to_the_middle() -> None:
    logits, targets = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    smooth = BinaryCrossEntropy(smoothing=0.2)(logits, targets)
    torch.testing.assert_close(smooth, BinaryCrossEntropy()(logits, torch.tensor([[0.9]])))


def test_a_base_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    from workers.training.errors import TrainingFailed

    folder = build_toy_base(tmp_path / "half")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TrainingFailed, match=r"base model 'half' has no tokenizer\.json; it needs") as caught:
        open_base(folder)
    assert caught.value.code == "base_model"
