"""The table of tuners. A new tuner is one file here, one line below, and its parameters in
`app/contracts/tuners.py`."""

from workers.training.tuners.base import Tuner
from workers.training.tuners.full import FullTuner
from workers.training.tuners.lora import LoraTuner

TUNERS: dict[str, type[Tuner]] = {"full": FullTuner, "lora": LoraTuner}
