"""The table of tasks that the inference worker answers: one file each, one line here."""

from app.contracts.tasks import TaskName
from workers.inference.tasks import sentence_embedding, text_classification, token_classification
from workers.inference.tasks.base import Prepare

TASKS: dict[TaskName, Prepare] = {
    "text-classification": text_classification.prepare,
    "token-classification": token_classification.prepare,
    "sentence-embedding": sentence_embedding.prepare,
}
