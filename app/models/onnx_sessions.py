"""How ONNX files are opened: where they run, what onnxruntime raises at damaged ones, and with which settings."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

ONNX_DAMAGED = (
    onnx_errors.Fail,
    onnx_errors.InvalidProtobuf,
    onnx_errors.InvalidGraph,
    onnx_errors.InvalidArgument,
    onnx_errors.NoSuchFile,
    onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
    OSError,
    ValueError,
    IndexError,
)
"""What onnxruntime raises at a file that is cut, empty or something else."""


def open_session(file: Path, providers: Sequence[object]) -> onnxruntime.InferenceSession:
    """The file's network, ready to run; one of `ONNX_DAMAGED` where it is none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait busily would take the cores from torch's own between two passes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=list(providers))


def providers_for(device_type: str, index: int | None) -> list[object]:
    """Where ONNX models run beside torch's device: on the GPU when onnxruntime was built for it, else on the CPU."""
    cuda = "CUDAExecutionProvider"
    if device_type == "cuda" and cuda in onnxruntime.get_available_providers():
        return [(cuda, {"device_id": index or 0}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]
