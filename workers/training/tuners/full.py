"""Full fine-tuning: every parameter trains."""

from workers.training.models import TaskModel
from workers.training.recipe import TunerRates
from workers.training.tuners.base import Tuner


class FullTuner(Tuner):
    rates = TunerRates(body=1.0, head=10.0)

    def attach(self, model: TaskModel) -> None:
        model.requires_grad_(True)

    def merge(self, model: TaskModel) -> None:
        """Nothing was added."""
