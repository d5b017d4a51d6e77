"""Out of the door: what a run has made of a model, in a file that others can read.

    with compressed_run("runs/lenet5") as model:
        to_onnx(model, "lenet5.onnx")

Each format's library is imported when the format is asked for: `pip install 'prunekit[export]'` installs them.
"""

from prunekit.export.compressed import Compressed, compressed
from prunekit.export.measure import Size, seconds, size_of
from prunekit.export.onnxruntime_check import Agreement
from prunekit.export.runs import compressed_run
from prunekit.export.to_onnx import to_onnx
from prunekit.export.to_safetensors import from_safetensors, to_safetensors
from prunekit.export.to_torchao import to_torchao

__all__ = [
    "Agreement",
    "Compressed",
    "Size",
    "compressed",
    "compressed_run",
    "from_safetensors",
    "seconds",
    "size_of",
    "to_onnx",
    "to_safetensors",
    "to_torchao",
]
