"""What authors of quantizers build with: bits by module, what can be quantized, the quantized forward pass."""

from __future__ import annotations

from prunekit.components.quantizer import (
    Calibrated,
    Integers,
    Integral,
    Levels,
    ModuleBits,
    Quantizable,
    QuantizesModules,
)
from prunekit.quantization.bits import (
    Bits,
    BitsQuantizer,
)
from prunekit.quantization.catalog import (
    INPUT,
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
