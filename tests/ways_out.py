"""The ways out of Python: each makes a function of tensors from a module and example inputs."""

import functools
import io
import warnings

import torch


def exported(module, inputs):
    """``torch.export``, saved and loaded again."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a node's memory was assigned to
        torch.export.save(torch.export.export(module, inputs), file)
        file.seek(0)
        return torch.export.load(file).module()


def traced(module, inputs):
    """``torch.jit.trace``, saved and loaded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that jit is deprecated; what sj_ext says has its own test
        trace = torch.jit.trace(module, inputs, check_trace=False)  # a node's state carries over
        file = io.BytesIO()
        torch.jit.save(trace, file)
        file.seek(0)
        return torch.jit.load(file)


def onnx(module, inputs):
    """ONNX by way of ``torch.export``, run by onnxruntime."""
    import onnxruntime

    _one_registry()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_inputs()]

    def run(*tensors):
        assert len(tensors) == len(names), names
        feed = {n: x.detach().numpy() for n, x in zip(names, tensors, strict=True)}
        outputs = [torch.from_numpy(y) for y in session.run(None, feed)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


@functools.cache
def _one_registry():
    """Let PyTorch read the operators of ONNX once, which is half of the time of an export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


WAYS = {"export": exported, "jit": traced, "onnx": onnx}
