"""The device, its threads, and whether bf16 pays on it. Makes torch deterministic before anything is built.

Knows torch and the processor only.
"""

import os

import torch


def prepare(seed: int, threads: int | None) -> tuple[torch.device, int]:
    """Seed, fix thread count and algorithms; returns the device and its CPU threads.

    Without `threads`, all cores of this process, or `OMP_NUM_THREADS`: another count sums in another order, and
    gives other last bits, so a later attempt gives the first one's.
    """
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
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
    """True on CUDA with bf16 and on processors with AMX tiles.

    Decided by what the processor has and not by a stopwatch: a busy machine would answer now so, now so, and the
    same seed would give other weights. AVX-512 bf16 without AMX was measured slower than float32 (165 against 290
    GFLOPS on two cores of a Xeon), since every product converts both ways.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
