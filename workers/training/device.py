"""The device, its threads, and whether bf16 pays on it. Makes torch deterministic before anything is built.

Knows torch and the processor only.
"""

import os
import time

import torch

MIN_SPEEDUP = 1.2
"""bf16 must win by this much in the probe: below, the conversions around the products eat the gain."""


def prepare(seed: int) -> tuple[torch.device, int]:
    """Seed, fix thread count and algorithms; returns the device and its CPU threads.

    Threads are all cores of this process, or `OMP_NUM_THREADS`: another count sums in another order, and
    gives other last bits.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    cuda = torch.cuda.is_available()
    # On CUDA a few backward passes have no deterministic form: those warn instead of ending the job.
    torch.use_deterministic_algorithms(True, warn_only=cuda)
    # The mode would also overwrite every new tensor with NaN, which finds bugs but costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Denormal gradients of padded rows are 100 times slower than zeros on x86.
    torch.set_flush_denormal(True)
    if cuda:
        torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if cuda else "cpu"), threads


def describe(device: torch.device) -> str:
    """The device in words, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"


def bf16_is_faster(device: torch.device) -> bool:
    """True on CUDA with bf16; on a CPU whose instructions have it, when a probe of under a second says so."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    has = torch.cpu.get_capabilities()
    if not (has.get("amx_bf16") or has.get("avx512_bf16")):
        return False
    return _probe(torch.float32) / _probe(torch.bfloat16) >= MIN_SPEEDUP


def _probe(dtype: torch.dtype) -> float:
    """Seconds of a feed-forward product as in MiniLM: 512 tokens, 384 x 1536. The minimum is free of load."""
    layer = torch.nn.Linear(384, 1536, dtype=dtype)
    tokens = torch.ones(512, 384, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(20):
            start = time.perf_counter()
            layer(tokens)
            best = min(best, time.perf_counter() - start)
    return best
