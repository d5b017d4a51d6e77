"""What authors of quantizers build with: bits by module, what can be quantized, the quantized forward pass."""

from __future__ import annotations

from prunekit.quantization.bits import (
    Bits,
    BitsQuantizer,
)
from prunekit.quantization.catalog import (
    INPUT,
)
from prunekit.quantization.integers import (
    Integers,
    Integral,
    Levels,
)
from prunekit.quantization.quantizable import (
    Calibrated,
    ModuleBits,
    Quantizable,
    QuantizesModules,
)

__all__ = [
    "INPUT",
    "Bits",
    "BitsQuantizer",
    "Calibrated",
    "Integers",
    "Integral",
    "Levels",
    "ModuleBits",
    "Quantizable",
    "QuantizesModules",
]
