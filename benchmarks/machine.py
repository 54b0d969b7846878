"""What a benchmark ran on, for the head of its report."""

import os
import platform
from pathlib import Path

# Dense bf16 peaks from the vendor's data sheets, TFLOP/s.
_PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0}


def describe_machine() -> str:
    """Cores, processor and its bf16 instructions, or the GPU; and torch's version."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    bf16 = " with AMX bf16" if "amx_bf16" in flags else " with AVX-512 bf16" if "avx512_bf16" in flags else ""
    return f"{os.cpu_count()} cores, {platform.machine()}{bf16}, torch {torch.__version__}"


def peak_tflops() -> float | None:
    """The GPU's dense bf16 peak, or None where it is not known."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for card, peak in _PEAKS.items() if card in name), None)
