"""The measured runs of `benchmarks.training`, each in a process of its own: one epoch, start-up left out."""

import io
import json
from pathlib import Path
from typing import Any

from app.contracts.hyperparameters import Hyperparameters
from app.contracts.training import DatasetFile, TrainingSpec

LENGTH = 128


def _base(folder: Path) -> Path:
    if (folder / "base").exists():
        return folder / "base"
    from app.core.settings import Settings
    from workers.base_models import resolve

    return resolve("all-MiniLM-L6-v2", Settings()).path


def write_random_bert_base(folder: Path) -> None:
    """A BERT of base size (110M parameters) with random weights and MiniLM's tokenizer: speed needs no knowledge."""
    import shutil

    from transformers import BertConfig, BertModel

    source = _base(folder.parent)
    folder.mkdir()
    model = BertModel(BertConfig(vocab_size=30522), add_pooling_layer=False)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)


def run_ours(folder: Path, batch_size: int, precision: str) -> dict[str, Any]:
    """The training child's own `fit`, evaluation off."""
    from workers.training.job import fit
    from workers.training.prepare import prepare
    from workers.training.reporter import Reporter

    spec = TrainingSpec(
        job_id="benchmark",
        task="text-classification",
        base_model="base",
        base_model_path=str(_base(folder)),
        base_model_revision="-",
        datasets={
            "train": DatasetFile(file_id="-", path=str(folder / "rows.jsonl"), format="jsonl", sha256="-"),
        },
        hyperparameters=Hyperparameters(
            n_epochs=1,
            batch_size=batch_size,
            learning_rate=2e-5,
            max_length=LENGTH,
            mixed_precision="bf16" if precision == "bf16" else "no",
            validation_split=0.0,
            test_split=0.0,
        ),
        seed=0,
        output=str(folder),
    )
    reporter = Reporter(io.StringIO())
    job = prepare(spec, reporter)
    with reporter.table(folder / "metrics.csv", ()):
        model, trained = fit(job, reporter)
    result: dict[str, Any] = {"samples_per_second": trained.rows / trained.seconds}
    if job.device.type == "cuda":
        size = sum(p.numel() for p in model.parameters())
        result["model_flops_per_second"] = 6 * size * trained.tokens / trained.seconds
    return result


def run_trainer(folder: Path, batch_size: int, precision: str) -> dict[str, Any]:
    """Hugging Face's Trainer with its defaults at our batch size and precision."""
    return _trainer(folder, {"per_device_train_batch_size": batch_size, "bf16": precision == "bf16"})


def run_untouched(folder: Path, _batch_size: int, _precision: str) -> dict[str, Any]:
    """Hugging Face's Trainer with nothing chosen."""
    return _trainer(folder, {})


def _trainer(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    labels = {label: i for i, label in enumerate(sorted({r["label"] for r in rows}))}
    base = _base(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = tokenizer([r["text"] for r in rows], truncation=True, max_length=LENGTH)
    data = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels[row["label"]]}
        for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True)
    ]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **arguments,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer))
    metrics = trainer.train().metrics
    return {"samples_per_second": len(rows) / metrics["train_runtime"]}
