"""The menu of execution providers. Knows none of them; `workers/inference/providers` has one file each."""

from typing import Literal

Provider = Literal["onnxruntime-cpu", "openvino-bf16", "cuda", "tensorrt"]
ProviderSetting = Literal["auto", "onnxruntime-cpu", "openvino-bf16", "cuda", "tensorrt"]
"""`auto`: the fastest that answers alike, measured on the machine that serves."""
