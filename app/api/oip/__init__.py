"""The Open Inference Protocol's wire forms: bodies, compression, binary tensors. No route and no model."""
