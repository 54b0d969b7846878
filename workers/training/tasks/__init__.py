"""The table of tasks. A new task is one file here, one line below, and its entry in
`app/contracts/tasks.py`."""

from workers.training.tasks.base import Task
from workers.training.tasks.text_classification import TextClassification
from workers.training.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
}
