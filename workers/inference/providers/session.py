"""One ONNX Runtime session, as all its providers use it. Knows neither lanes nor buckets."""

import onnxruntime

from workers.inference.graph import Graph
from workers.inference.runtime import Float32, Int64, RuntimeRefused

_SPIN_MICROSECONDS = "100"
"""How long a thread looks for its next piece of work before it sleeps: between two nodes, hardly after a run. Without
it a short text takes 3.9 ms on two cores instead of 2.4 ms; ONNX Runtime's own default gains 0.1 ms more and burns the
cores that gateway and tokenizer need."""

_DISABLED = ["SkipLayerNormFusion"]
"""Of ONNX Runtime's own optimizations. On a processor the sum and the LayerNormalization apart take a seventh of the
fused operator's time (1.32: 29 microseconds against 190 for 96 tokens of 384), a twelfth of a run in float32, a fifth
in int8."""


class Session:
    """One session, on whichever execution providers its caller names, the first one preferred."""

    def __init__(self, graph: Graph, providers: list[str | tuple[str, dict[str, str]]], threads: int) -> None:
        """Raises `RuntimeRefused`, also where ONNX Runtime fell back, silently as it does, from the first provider."""
        try:
            self._session = onnxruntime.InferenceSession(
                graph.model, _options(threads), providers=providers, disabled_optimizers=_DISABLED
            )
        except Exception as exc:  # its error types share no base of their own
            raise RuntimeRefused(f"ONNX Runtime refuses the graph: {exc}") from exc
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        got = self._session.get_providers()[0]
        if got != wanted:
            raise RuntimeRefused(
                f"{wanted} was asked for and ONNX Runtime fell back to {got}: install onnxruntime-gpu and its CUDA "
                "libraries, or set MODELWRIGHT_PROVIDER=onnxruntime-cpu"
            )
        # It would keep them to start anew without a provider that failed, which here is an error.
        self._session._model_bytes = None
        graph.signature.check_inputs([i.name for i in self._session.get_inputs()])
        self._signature = graph.signature

    def run(self, ids: Int64, mask: Int64) -> Float32:
        """See `Runtime.run`."""
        logits: Float32 = self._session.run([self._signature.output], self._signature.feeds(ids, mask))[0]
        return logits

    def run_bound(self, ids: Int64, mask: Int64) -> Float32:
        """`run` with inputs and output bound: one copy to the device, one back, none between providers."""
        binding = self._session.io_binding()
        for name, value in self._signature.feeds(ids, mask).items():
            binding.bind_cpu_input(name, value)
        binding.bind_output(self._signature.output)
        self._session.run_with_iobinding(binding)
        logits: Float32 = binding.copy_outputs_to_cpu()[0]
        return logits


def _options(threads: int) -> "onnxruntime.SessionOptions":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # an encoder is one chain of nodes
    options.enable_mem_pattern = False  # plans memory for one shape; here nearly every batch has its own
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    options.log_severity_level = 3  # errors; warnings about unused initializers are of no use to an operator
    return options
