"""Training speed beside Hugging Face's Trainer: the same model, rows and batch size, one fresh process a run.

Runs are interleaved (ours, theirs, ours, theirs, ...) and compared pair by pair, so a machine that slows down
slows both. "Untouched" is the Trainer with nothing set but the output folder: its own batch size and precision.

    python -m benchmarks.training                          # MiniLM on the demo's messages
    python -m benchmarks.training --data rows.jsonl --rows 4000 --pairs 5
    python -m benchmarks.training --random-bert-base       # a 110M-parameter model; on CUDA with its share of the peak
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, peak_tflops

Run = dict[str, Any]

WHY = """
What brings it: length-bucketed batches (padding under 5 %), training only the embedding rows in use, fused optimizers
and the fused attention kernel ([training.md](training.md)). bf16 loses to float32 on processors without AMX; `auto`
picks float32 there. On a GPU the script runs in bf16, with `--random-bert-base` also stating its share of the card's
peak; that has not been tried on a card.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help='JSONL of {"text", "label"} (default: the messages of the demo)')
    parser.add_argument("--rows", type=int, default=1600, help="training rows of a run")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs for each precision")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--random-bert-base", action="store_true", help="random weights of BERT-base's size")
    parser.add_argument("--write", type=Path, help="also write the report here")
    parser.add_argument("--child", choices=["ours", "trainer", "untouched"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from benchmarks import training_runs

        run = getattr(training_runs, f"run_{options.child}")
        result: Run = run(options.folder, options.batch_size, options.precision[0])
        result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print("RESULT " + json.dumps(result))
        return
    report = _report(options)
    print(report)
    if options.write:
        options.write.write_text(report)


def _report(options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(options, folder)
        out = io.StringIO()
        model = "a random model of BERT-base's size" if options.random_bert_base else "all-MiniLM-L6-v2"
        print("# Training speed\n", file=out)
        print("Written by `python -m benchmarks.training`; the ratios are what counts.\n", file=out)
        print(f"{describe_machine()}. {model}, {options.rows} rows, batch size {options.batch_size},", file=out)
        print(f"{options.pairs} interleaved pairs, medians.\n", file=out)
        print("| precision | run | samples/s | peak MiB | ours / this |", file=out)
        print("|---|---|---|---|---|", file=out)
        ours: list[Run] = []
        for precision in options.precision:
            pairs = [
                (_child("ours", precision, options, folder), _child("trainer", precision, options, folder))
                for _ in range(options.pairs)
            ]
            ours = [pair[0] for pair in pairs]
            ratio = statistics.median(a["samples_per_second"] / b["samples_per_second"] for a, b in pairs)
            _row(out, precision, "Modelwright", ours, None)
            _row(out, precision, "Trainer, same batch size", [pair[1] for pair in pairs], ratio)
            if precision == "fp32":
                plain = [_child("untouched", precision, options, folder) for _ in range(options.pairs)]
                ratio = _median(ours, "samples_per_second") / _median(plain, "samples_per_second")
                _row(out, precision, "Trainer, untouched defaults", plain, ratio)
        if ours and "model_flops_per_second" in ours[0]:
            _share_of_peak(out, ours)
        print(WHY, end="", file=out)
        return out.getvalue()


def _prepare(options: argparse.Namespace, folder: Path) -> None:
    from demo.topics import topic_rows

    if options.data:
        rows = [json.loads(line) for line in options.data.read_text().splitlines() if line.strip()]
    else:
        rows = topic_rows()
    rows = (rows * (options.rows // len(rows) + 1))[: options.rows]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    if options.random_bert_base:
        from benchmarks.training_runs import write_random_bert_base

        write_random_bert_base(folder / "base")


def _child(kind: str, precision: str, options: argparse.Namespace, folder: Path) -> Run:
    command = [sys.executable, "-m", "benchmarks.training", "--child", kind, "--folder", str(folder)]
    command += ["--precision", precision, "--batch-size", str(options.batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{kind} {precision} failed:\n{done.stderr[-3000:]}")
    result: Run = json.loads(lines[-1].removeprefix("RESULT "))
    print(f"  {kind} {precision}: {result['samples_per_second']:.1f} samples/s", file=sys.stderr)
    return result


def _median(runs: list[Run], key: str) -> float:
    return statistics.median(float(run[key]) for run in runs)


def _row(out: io.StringIO, precision: str, name: str, runs: list[Run], ratio: float | None) -> None:
    shown = f"{ratio:.2f}" if ratio else ""
    speed, memory = _median(runs, "samples_per_second"), _median(runs, "peak_mib")
    print(f"| {precision} | {name} | {speed:.1f} | {memory:.0f} | {shown} |", file=out)


def _share_of_peak(out: io.StringIO, runs: list[Run]) -> None:
    """Model FLOP/s (6 x parameters x tokens, Kaplan et al. 2020, section 2.1) beside the card's bf16 peak."""
    flops, peak = _median(runs, "model_flops_per_second"), peak_tflops()
    if peak:
        print(f"\nbf16 model FLOP/s: {flops / 1e12:.1f} T, {flops / 1e12 / peak:.1%} of the card's {peak} T.", file=out)


if __name__ == "__main__":
    main()
