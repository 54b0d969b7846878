"""Upload, train, measure, predict; then say how to go on. Reads like the README's quickstart, with a progress bar."""

import argparse
import io
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.core.rows import read_file, sniff
from demo.service import Service, running_service
from demo.topics import UNSEEN, topic_rows

console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="your own JSONL, CSV or Parquet rows (default: topics of messages)")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="column to use for a field, e.g. text=utterance",
    )
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="base model")
    options = parser.parse_args()
    rows, unseen = _load(options.data)
    console.print(f"[bold]Modelwright demo[/bold]: {len(rows)} rows from {options.data or 'chatterbot-corpus (pip)'}")
    console.print("starting the service (PostgreSQL, Valkey, gateway, trainer, inference) ...")
    with running_service() as service:
        console.print(f"running at {service.url}\n")
        client = OpenAI(base_url=f"{service.url}/v1", api_key=service.key)
        name = _train(client, options.model, rows, dict(m.split("=", 1) for m in options.map))
        _show_metrics(service, name, rows)
        _predict(service, name, unseen)
        _what_next(service, name)
    console.print("service stopped.")


def _load(path: Path | None) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows to train on, and inputs the model will not have seen."""
    if path is None:
        return topic_rows(), list(UNSEEN)
    with path.open("rb") as stream:
        fmt = sniff(stream, path.name)
    rows = [row for _, row in read_file(path, fmt)]
    random.Random(0).shuffle(rows)
    held = min(3, max(len(rows) // 20, 0))
    console.print(f"holding out {held} rows to predict at the end")
    return rows[held:], [_as_input(row) for row in rows[:held]]


def _as_input(row: dict[str, Any]) -> Any:
    tokens = next((v for k, v in row.items() if isinstance(v, list) and k == "tokens"), None)
    return {"tokens": tokens} if tokens else max((v for v in row.values() if isinstance(v, str)), key=len)


def _train(client: OpenAI, base: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    data = io.BytesIO("\n".join(json.dumps(row) for row in rows).encode())
    file = client.files.create(file=("demo.jsonl", data), purpose="fine-tune")
    console.print(f"uploaded   {file.id} ({file.bytes:,} bytes)")
    job = client.fine_tuning.jobs.create(
        model=base, training_file=file.id, suffix="demo", seed=0, extra_body={"dataset": columns}
    )
    console.print(f"created    {job.id} on {base}, all defaults")
    with Progress(
        TextColumn("{task.fields[phase]:<16}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        shown, spoken = bar.add_task("training", total=100, phase="queued", note=""), 0.0
        while job.status not in ("succeeded", "failed", "cancelled"):
            time.sleep(1)
            job = client.fine_tuning.jobs.retrieve(job.id)
            extra = job.model_extra or {}
            progress = extra.get("progress") or {}
            note = ""
            if "step" in progress:
                note = (
                    f"step {progress['step']}/{progress['total_steps']}  loss {progress['train_loss']:.3f}  "
                    f"ETA {progress['eta_seconds']} s"
                )
            bar.update(shown, completed=progress.get("percent", 0), phase=extra.get("phase") or job.status, note=note)
            if not console.is_terminal and time.monotonic() - spoken > 5:  # a bar needs a terminal; a log needs lines
                console.print(f"{extra.get('phase') or job.status}: {progress.get('percent', 0):.0f}%  {note}")
                spoken = time.monotonic()
    if job.status != "succeeded":
        console.print(f"[red]{job.status}[/red]: {job.error.message if job.error else ''}")
        sys.exit(1)
    console.print(f"published  {job.fine_tuned_model}\n")
    return "demo"


def _show_metrics(service: Service, name: str, rows: list[dict[str, Any]]) -> None:
    headers = {"authorization": f"Bearer {service.key}"}
    version = httpx.get(f"{service.url}/v1/models/{name}/versions/1", headers=headers).json()
    table = Table("metric", "test", "validation", title=f"{version['model']}:{version['version']} ({version['task']})")
    metrics = version["metrics"]
    test, validation = metrics.get("test") or {}, metrics.get("validation") or {}
    for key in validation:
        if isinstance(validation[key], int | float):
            table.add_row(
                key, *(f"{m[key]:.4f}" if isinstance(m.get(key), int | float) else "-" for m in (test, validation))
            )
    console.print(table)
    labels = Counter(str(row["label"]) for row in rows if "label" in row)
    if labels and "majority_accuracy" not in validation:
        label, count = labels.most_common(1)[0]
        console.print(f"majority baseline: always {label!r} is right for {count / sum(labels.values()):.4f}")
    parity = version["parity"]
    console.print(f"ONNX beside torch: max |logit difference| {parity['max_abs_logit_diff']:.1e}\n")


def _predict(service: Service, name: str, unseen: list[Any]) -> None:
    headers = {"authorization": f"Bearer {service.key}"}
    answer = httpx.post(
        f"{service.url}/predict", headers=headers, json={"model": name, "inputs": unseen}, timeout=60
    ).json()
    for value, output in zip(unseen, answer["outputs"], strict=True):
        text = " ".join(value["tokens"]) if isinstance(value, dict) else value
        if "label" in output:
            found = f"{output['label']} ({output['score']:.2f})"
        elif "labels" in output:
            found = ", ".join(f"{x['label']} ({x['score']:.2f})" for x in output["labels"]) or "no label"
        else:
            found = ", ".join(f"{e['text']} = {e['label']}" for e in output["entities"]) or "no entities"
        # The user's own text may hold brackets, which are no markup.
        console.print(f"  {escape(f'{text[:90]!r:<50}')} -> [bold]{escape(found)}[/bold]", soft_wrap=True)


def _what_next(service: Service, name: str) -> None:
    body = json.dumps({"model": name, "inputs": ["Do you like pasta?"]})
    console.print("\nthe same by hand (this service stops now; `make serve` keeps one on port 8000, its key in var/):")
    console.print(
        f"  curl -s {service.url}/predict -H 'Authorization: Bearer '\"$(cat var/admin.key)\" "
        f"-H 'Content-Type: application/json' -d '{body}'",
        soft_wrap=True,
        markup=False,
    )
    for what, path in {"API docs": "/docs", "OpenAPI": "/openapi.json", "metrics": "/metrics"}.items():
        console.print(f"{what}: {service.url}{path}", soft_wrap=True)
    console.print(
        "try next: `make demo DATA=my.jsonl`, `make serve`, docs/api.md (LoRA, tagging, aliases)", soft_wrap=True
    )


if __name__ == "__main__":
    main()
