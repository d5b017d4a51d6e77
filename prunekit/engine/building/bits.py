"""Quantizers that speak of modules: which parameters and activations get how many bits, and by which line."""

from __future__ import annotations

from collections.abc import Mapping

from prunekit.components.selecting import GivenSelector
from prunekit.engine.building.shapes import with_shapes
from prunekit.engine.checked import BitsPlan, GivenModel, Made, Owned
from prunekit.engine.problems import Problems
from prunekit.quantization.quantizable import ModuleBits, Quantizable, QuantizesModules

_PART_OF = {"weight": "weights", "bias": "bias"}
"""A module's parameter -> what of the module it is to quantizers."""


def planned(made: Made, network: GivenModel, problems: Problems) -> tuple[Owned, BitsPlan]:
    """What such a quantizer quantizes; what of its arguments fits no module is said."""
    quantizer, catalog = made.component, network.catalog
    wrong = list(quantizer.check_bits(catalog.quantizable))
    modules: Mapping[str, ModuleBits] = quantizer.bits(catalog.quantizable)
    problems.refuse(wrong, made.place)
    if not modules and not wrong:
        what = f"{made.spec.class_name} quantizes nothing: it is given no bits for what there is"
        problems.add(made.class_path, what)
    chosen = with_shapes(_chosen(modules, made, network, problems), made, network, problems)
    owned = Owned.of(chosen, network)
    activations = {
        catalog.unwrapped_names[name]: bits.activations for name, bits in modules.items() if bits.activations
    }
    told = {name: {**_numbers(bits), "by": _line(bits, made, problems)} for name, bits in modules.items()}
    untraceable = catalog.untraceable | (catalog.untraceable_sums if _quantizes_sums(quantizer) else {})
    return owned, BitsPlan(activations, told, untraceable)


def _chosen(
    modules: Mapping[str, ModuleBits], made: Made, network: GivenModel, problems: Problems
) -> dict[str, GivenSelector]:
    """Parameter -> its bits, and the key that gives them; one that several modules share has those of all of them."""
    given: dict[str, GivenSelector] = {}
    firsts: dict[str, str] = {}
    names = {name: name for name in network.parameters.by_name} | network.parameters.aliases
    for name, parameter in names.items():
        owner, _, own = name.rpartition(".")
        if own not in _PART_OF or not getattr(network.catalog.quantizable.get(owner), _PART_OF[own], False):
            continue
        module = modules.get(owner, ModuleBits())
        bits, first = getattr(module, _PART_OF[own]), firsts.setdefault(parameter, name)
        key = module.given_by or (f"bits_{_PART_OF[own]}",)
        known = given.setdefault(parameter, GivenSelector(owner, key, bits)).setting
        if known != bits:
            these, those = (f"{number} bits" if number else "no bits" for number in (bits, known))
            message = f"{name!r} gets {these}, and {first!r}, which is the same parameter, gets {those}"
            problems.add(made.place(module.given_by), message, key=bool(module.given_by))
    return {parameter: selector for parameter, selector in given.items() if selector.setting}


def _line(bits: ModuleBits, made: Made, problems: Problems) -> str:
    """Which line of the schedule gives a module its bits."""
    keys = [f"bits_{part}" for part, number in _numbers(bits).items() if number]
    key = bits.given_by or tuple(key for key in keys if key in made.args)[:1]
    where = problems.source.locate(made.place(key), key=True)
    return f"{where}, {bits.given_by[-1]}" if bits.given_by else str(where)


def _numbers(bits: ModuleBits) -> dict[str, int | None]:
    return {"weights": bits.weights, "activations": bits.activations, "bias": bits.bias}


def _quantizes_sums(quantizer: QuantizesModules) -> bool:
    # Nothing else says so: it is asked about a sum that does not exist.
    return bool(quantizer.bits({"": Quantizable("add", adds=True)}))
