"""The gateway: HTTP in, rows and messages out. Imports no torch, transformers or onnxruntime."""

__version__ = "0.1.0"
