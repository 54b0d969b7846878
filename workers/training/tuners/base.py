"""What a tuner owes the loop: which parameters train, and a plain model at the end."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from workers.training.models import TaskModel
from workers.training.recipe import TunerRates


class Tuner(ABC):
    """One way of training. The head always trains: it starts from random values."""

    rates: ClassVar[TunerRates]

    def __init__(self, config: Any) -> None:
        """`config` is the tuner's entry in `app/contracts/tuners.py`."""
        self.config = config

    @abstractmethod
    def attach(self, model: TaskModel) -> None:
        """Prepare the model; `requires_grad` says afterwards what trains. May raise `TrainingFailed`."""

    @abstractmethod
    def merge(self, model: TaskModel) -> None:
        """Leave the base architecture only, with what was learnt in its own weights."""
