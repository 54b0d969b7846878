"""What every (task, tuner) pair owes: the same promises, checked on the same toy."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from transformers import AutoModel

from app.contracts import tasks as task_menu
from app.contracts import tuners as tuner_menu
from app.contracts.manifest import Manifest
from app.contracts.training import Checkpointed, Evaluation, Phase, Resolved, Step
from tests.conformance.conftest import EPOCHS, Case, read_messages
from workers.training.errors import Stopped
from workers.training.export import INPUTS
from workers.training.job import fit, run
from workers.training.models import TaskModel, build, open_base
from workers.training.prepare import prepare
from workers.training.reporter import Reporter
from workers.training.tasks import TASKS
from workers.training.tuners import TUNERS

PROMISED: dict[str, Callable[[str], bool]] = {
    "full": lambda _: True,
    "lora": lambda name: name.endswith("dense.weight") or (".attention.self." in name and name.endswith("weight")),
}
"""Which parameters of the base model a tuner may change."""


def steps(messages: Sequence[BaseModel]) -> list[Step]:
    return [m for m in messages if isinstance(m, Step)]


def loaded(case: Case) -> TaskModel:
    """The artifact's weights in a fresh module."""
    task = TASKS[case.spec.task](multi_label=case.spec.multi_label)
    labels = Manifest.model_validate_json((case.artifact / "manifest.json").read_bytes()).serving.labels
    model = build(open_base(Path(case.spec.base_model_path)), len(labels), pooled=task.pooled)
    model.load_state_dict(load_file(case.artifact / "model.safetensors"))
    return model.eval()


def test_the_tables_hold_what_the_menu_offers() -> None:
    assert TASKS.keys() == {name for name, task in task_menu.TASKS.items() if task.trainable}
    assert TUNERS.keys() == tuner_menu.TUNERS.keys() == PROMISED.keys()
    assert all(task.tuners <= TUNERS.keys() for task in task_menu.TASKS.values())


def test_the_loss_falls(case: Case) -> None:
    losses = [step.train_loss for step in steps(case.messages)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_it_beats_the_commonest_answer(case: Case) -> None:
    test = case.finished.metrics["test"]
    assert test["accuracy"] > test["majority_accuracy"]


def test_only_promised_parameters_change(case: Case) -> None:
    before = load_file(Path(case.spec.base_model_path) / "model.safetensors")
    after = {n.removeprefix("bert."): t for n, t in load_file(case.artifact / "model.safetensors").items()}
    assert after.keys() == before.keys() | {"classifier.weight", "classifier.bias"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(PROMISED[case.spec.tuner.type](name) for name in changed)


def test_the_same_seed_gives_the_same_losses_and_weights(case: Case) -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    model, _ = fit(prepare(case.spec, reporter), reporter)
    again = [m.train_loss for m in steps(read_messages(stream))]
    assert again == [m.train_loss for m in steps(case.messages)]
    for name, saved in load_file(case.artifact / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], saved), name


class _StopsAtCheck(Reporter):
    """Hears the parent's stop at its n-th look."""

    def __init__(self, stream: io.StringIO, at: int) -> None:
        super().__init__(stream)
        self._left = at

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.stop()
        super().check()


@pytest.mark.parametrize("stop_at", [5, 40])
def test_a_resumed_run_ends_with_the_same_bits(case: Case, tmp_path: Path, stop_at: int) -> None:
    spec = case.spec.model_copy(update={"checkpoint_folder": str(tmp_path), "output": str(tmp_path / "out")})
    stream = io.StringIO()
    with pytest.raises(Stopped):
        run(spec, _StopsAtCheck(stream, stop_at))
    told = read_messages(stream)
    saved = [m for m in told if isinstance(m, Checkpointed)][-1]
    resolved = next(m for m in told if isinstance(m, Resolved))
    again = {"resume_from": str(tmp_path / saved.folder), "resolved": resolved.model_dump()}
    stream = io.StringIO()
    run(spec.model_copy(update=again), Reporter(stream))
    assert steps(read_messages(stream))[0].step == saved.step + 1
    assert (tmp_path / "out" / "artifact" / "model.safetensors").read_bytes() == (
        case.artifact / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "out" / "metrics.csv").read_text() == (Path(case.spec.output) / "metrics.csv").read_text()


def test_a_checkpoint_can_be_exported_and_started_from(case: Case, tmp_path: Path) -> None:
    hyperparameters = case.spec.hyperparameters.model_copy(update={"n_epochs": 1})
    one = case.spec.model_copy(
        update={"hyperparameters": hyperparameters, "checkpoint_folder": str(tmp_path / "c"), "output": str(tmp_path)}
    )
    stream = io.StringIO()
    run(one, Reporter(stream))
    (saved,) = (m for m in read_messages(stream) if isinstance(m, Checkpointed))
    start = {"start_from": str(tmp_path / "c" / saved.folder), "checkpoint_folder": None}
    run(one.model_copy(update={**start, "export_only": True, "output": str(tmp_path / "export")}), Reporter(stream))
    assert (tmp_path / "export" / "artifact" / "model.safetensors").read_bytes() == (
        tmp_path / "artifact" / "model.safetensors"
    ).read_bytes()
    stream = io.StringIO()
    run(one.model_copy(update={**start, "output": str(tmp_path / "further")}), Reporter(stream))
    first, further = (steps(case.messages)[0], steps(read_messages(stream))[0])
    assert further.train_loss < first.train_loss


def test_half_the_batch_gives_the_same_losses(case: Case, tmp_path: Path) -> None:
    """Nearly: sums in another order, and other random draws where there are any."""
    quiet = case.spec.hyperparameters.model_copy(update={"n_epochs": 1, "word_dropout": 0.0})
    losses = []
    for halvings in (0, 1, 2):
        stream = io.StringIO()
        spec = case.spec.model_copy(update={"hyperparameters": quiet, "batch_halvings": halvings})
        reporter = Reporter(stream)
        job = prepare(spec, reporter)
        assert job.effective.batch_size == 16 // 2**halvings
        fit(job, reporter)
        losses.append([s.train_loss for s in steps(read_messages(stream))])
    assert len(losses[0]) == len(losses[1]) == len(losses[2])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=0.5)


def test_another_seed_gives_other_losses(case: Case) -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    hyperparameters = case.spec.hyperparameters.model_copy(update={"n_epochs": 1})
    fit(prepare(case.spec.model_copy(update={"seed": 2, "hyperparameters": hyperparameters}), reporter), reporter)
    assert steps(read_messages(stream))[0].train_loss != steps(case.messages)[0].train_loss


@pytest.mark.parametrize(("rows", "length"), [(1, 2), (1, 64), (3, 17), (16, 5)])
def test_the_graph_computes_what_the_saved_weights_compute(case: Case, rows: int, length: int) -> None:
    ids = torch.randint(4, 60, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[rows // 2, length // 2 + 1 :] = 0
    with torch.no_grad():
        expected = loaded(case)(ids, mask).numpy()
    session = onnxruntime.InferenceSession(case.artifact / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_graph_inputs_are_named_and_dynamic(case: Case) -> None:
    session = onnxruntime.InferenceSession(case.artifact / "model.onnx", providers=["CPUExecutionProvider"])
    described = [(i.name, i.type, i.shape) for i in session.get_inputs()]
    assert described == [(name, "tensor(int64)", ["batch", "sequence"]) for name in INPUTS]
    assert [o.name for o in session.get_outputs()] == ["logits"]


def test_the_encoder_loads_with_transformers_alone(case: Case) -> None:
    encoder = AutoModel.from_pretrained(case.artifact, add_pooling_layer=False)
    saved = load_file(case.artifact / "model.safetensors")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, saved[f"bert.{name}"]), name


def test_parity_is_recorded(case: Case) -> None:
    parity = case.finished.parity
    assert parity["max_abs_logit_diff"] <= parity["tolerance"]
    assert parity["label_agreement"] == 1.0
    assert parity["rows"] >= 20


def test_the_manifest_vouches_for_every_file(case: Case) -> None:
    manifest = Manifest.model_validate_json((case.artifact / "manifest.json").read_bytes())
    assert manifest.digest == manifest.compute_digest()
    names = {path.name for path in case.artifact.iterdir()} - {"manifest.json"}
    assert manifest.files.keys() == names
    text = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"model.onnx", "fused.onnx", "model.safetensors", "config.json", *text}
    assert all((case.artifact / n).stat().st_size == entry.bytes for n, entry in manifest.files.items())


def test_messages_tell_the_story_in_order(case: Case) -> None:
    phases = [m.phase for m in case.messages if isinstance(m, Phase)]
    assert phases == ["validating_files", "training", "evaluating", "exporting"]
    (resolved,) = [m for m in case.messages if isinstance(m, Resolved)]
    told = steps(case.messages)
    assert [s.step for s in told] == list(range(1, resolved.total_steps + 1))
    assert told[-1].epoch == EPOCHS
    assert [s.tokens for s in told] == sorted(s.tokens for s in told)
    evaluations = [m for m in case.messages if isinstance(m, Evaluation)]
    assert [m.split for m in evaluations] == ["validation"] * EPOCHS + ["test"]
    metrics = task_menu.TASKS[case.spec.task].metrics
    assert all(set(metrics) <= m.metrics.keys() for m in evaluations)


def test_the_table_has_one_row_a_step(case: Case) -> None:
    with (Path(case.spec.output) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics = task_menu.TASKS[case.spec.task].metrics
    assert list(rows[0]) == ["step", "epoch", "train_loss", "learning_rate", *(f"eval_{m}" for m in metrics)]
    assert [int(row["step"]) for row in rows] == [s.step for s in steps(case.messages)]
    evaluated = [row for row in rows if row["eval_loss"]]
    assert [float(row["epoch"]) for row in evaluated] == list(range(1, EPOCHS + 1))


def test_the_best_validation_epoch_is_what_is_published(case: Case) -> None:
    metric = task_menu.TASKS[case.spec.task].metrics[0]
    seen = [m.metrics[metric] for m in case.messages if isinstance(m, Evaluation) and m.split == "validation"]
    assert case.finished.metrics["validation"][metric] == pytest.approx(max(seen), abs=1e-6)
