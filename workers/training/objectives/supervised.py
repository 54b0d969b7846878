"""The supervised objective: forward, loss, backward and update of one optimizer step, over its micro-batches.

Knows the model and a criterion; knows neither epochs nor evaluation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workers.training.batching import Batch
from workers.training.losses import Loss
from workers.training.models import TaskModel
from workers.training.recipe import Recipe
from workers.training.weights import WEIGHTS, save_weights

KEPT, OPTIMIZER, SCHEDULE = "kept.safetensors", "optimizer.safetensors", "schedule.json"


class Supervised:
    """Holds the optimizer and the schedule. Weights stay float32; bf16 is used in the forward pass."""

    def __init__(self, model: TaskModel, criterion: Loss, recipe: Recipe, device: torch.device) -> None:
        self.model = model.to(device)
        self.criterion = criterion.to(device)
        self.recipe = recipe
        self.device = device
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = _optimizer(self.trained, recipe)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, recipe.rate)
        self._kept: dict[str, Tensor] | None = None

    @property
    def learning_rate(self) -> float:
        """Of the base model's parameters, for the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, micro_batches: Sequence[Batch]) -> Tensor:
        """Update once; returns the mean loss over all targets of the micro-batches, still on the device."""
        batches = [batch.to(self.device) for batch in micro_batches]
        weight = torch.stack([self.criterion.weight(b.targets) for b in batches]).sum().clamp(min=1e-8)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.criterion(self.logits(batch), batch.targets) / weight
            loss.backward()
            total += loss.detach()
        if self.recipe.max_grad_norm:
            nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return total

    def logits(self, batch: Batch) -> Tensor:
        """float32 logits, computed in the recipe's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.mixed_precision == "bf16"):
            logits: Tensor = self.model(batch.input_ids, batch.attention_mask)
        return logits

    def keep(self) -> None:
        self._kept = {name: p.detach().to("cpu", copy=True) for name, p in self.trained.items()}

    def restore(self) -> None:
        if self._kept is not None:
            self._set_weights(self._kept)

    def save(self, folder: Path) -> None:
        """Weights, kept weights, optimizer, schedule and the random states that dropout draws from."""
        save_weights({name: p.detach().contiguous() for name, p in self.trained.items()}, self.model, folder)
        if self._kept is not None:
            save_file(self._kept, folder / KEPT)
        state = self.optimizer.state_dict()
        tensors = {f"{i}.{name}": v for i, group in state["state"].items() for name, v in group.items()}
        tensors = {name: v for name, v in tensors.items() if v is not None}
        save_file({**tensors, **_random_states()}, folder / OPTIMIZER)
        values = {"param_groups": state["param_groups"], "schedule": self.schedule.state_dict()}
        (folder / SCHEDULE).write_text(json.dumps(values))

    def load(self, folder: Path) -> None:
        values = json.loads((folder / SCHEDULE).read_text())
        tensors = load_file(folder / OPTIMIZER)
        _set_random_states(tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})
        self.schedule.load_state_dict(values["schedule"])
        self._set_weights(load_file(folder / WEIGHTS))
        if (folder / KEPT).exists():
            self._kept = load_file(folder / KEPT)

    def _set_weights(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state[name])


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(tensors: dict[str, Tensor]) -> None:
    """Takes its own out of `tensors`."""
    torch.set_rng_state(tensors.pop("random.cpu"))
    cuda = tensors.pop("random.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _optimizer(trained: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay spares biases, norms and embeddings; the head has its own learning rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        head = name.startswith("classifier.")
        decays = parameter.ndim > 1 and "embeddings." not in name
        groups.setdefault((head, decays), []).append(parameter)
    options: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": recipe.learning_rate * (recipe.head_learning_rate_factor if head else 1.0),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    match recipe.optim:
        case "adamw":
            return torch.optim.AdamW(options, fused=True)
        case "adam":
            return torch.optim.Adam(options, fused=True)
        case "sgd":
            return torch.optim.SGD(options, momentum=0.9, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(options)
