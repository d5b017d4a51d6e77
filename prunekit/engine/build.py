"""Schedule + registry + model + optimizer -> policies, or everything that is wrong, all of it at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from prunekit.components.arguments import check_arguments, signature_of
from prunekit.components.context import Context
from prunekit.components.kinds import KINDS
from prunekit.components.origin import Origin
from prunekit.components.pruner import Accompanied, PrunerArguments
from prunekit.components.regularizer import RegularizerArguments
from prunekit.components.selecting import GivenSelector, given_selectors
from prunekit.engine.conflicts import collisions, exhausted, idle_policies
from prunekit.engine.learning_rate import LearningRateSchedule
from prunekit.engine.policies import (
    HookPolicy,
    LRPolicy,
    Policy,
    PruningPolicy,
    QuantizationPolicy,
    RegularizationPolicy,
    drops_weights,
)
from prunekit.errors import ArgumentError, PluginError, Problem
from prunekit.model.dataflow import following_batchnorms
from prunekit.model.names import stable_name
from prunekit.model.parameters import Parameters
from prunekit.model.selectors import select
from prunekit.plugins.listeners import must_be
from prunekit.plugins.registry import Found, Registry
from prunekit.progress import Window
from prunekit.quantization.catalog import Catalog, catalog, reads_weights_by_name
from prunekit.quantization.quantizable import ModuleBits, Quantizable, QuantizesModules
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.schedule.yaml_source import Path_, plain

_PART_OF = {"weight": "weights", "bias": "bias"}
"""A module's parameter -> what of the module it is to quantizers."""


@dataclass
class Built:
    """What came of a schedule. Usable if `problems` is empty; `warnings` are what has no effect.

    `components` are the stateful objects by their path, `found` the classes by kind and name, `catalog` what can be
    quantized, where somebody asked.
    """

    policies: list[Policy] = field(default_factory=list)
    components: dict[str, Any] = field(default_factory=dict)
    found: dict[tuple[str, str], Found] = field(default_factory=dict)
    catalog: Catalog | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def build(
    schedule: Schedule,
    registry: Registry,
    model: Module | None = None,
    optimizer: Optimizer | None = None,
    epochs: int | None = None,
) -> Built:
    """Find, check and make everything that a schedule names.

    Without a model nothing that depends on parameter names is checked; without `epochs`, not whether each policy acts.
    """
    return _Builder(schedule, registry, model, optimizer, epochs).run()


class _Builder:
    def __init__(
        self,
        schedule: Schedule,
        registry: Registry,
        model: Module | None,
        optimizer: Optimizer | None,
        epochs: int | None,
    ) -> None:
        self.schedule, self.registry = schedule, registry
        self.model, self.optimizer, self.epochs = model, optimizer, epochs
        self.parameters = None if model is None else Parameters.of(model)
        self.found: dict[tuple[str, str], Found] = {}
        self.built = Built()

    def run(self) -> Built:
        for spec in self.schedule.components:
            self.component(spec)
        for policy in self.schedule.policies:
            self.policy(policy)
        for policy in self.schedule.spoilt:
            self.policy(policy, usable=False)
        self.built.problems += idle_policies(self.schedule, self.epochs)
        self.built.problems += exhausted(self.schedule, self.built.policies, self.epochs)
        self.built.problems += collisions(self.schedule, self.built.policies)
        return self.built

    # Components

    def component(self, spec: ComponentSpec) -> None:
        try:
            found = self.find(spec)
        except PluginError as error:
            self.say((*spec.path, "class"), str(error))
            return
        self.found[spec.kind, spec.name] = found
        self.built.found[spec.kind, spec.class_name.rpartition(":")[2]] = found
        self.make(spec, spec.args, spec.path, ".".join(spec.path))

    def find(self, spec: ComponentSpec) -> Found:
        if isinstance(spec.class_, type):
            found = Found(spec.class_, spec.class_.__module__, "")
            self.registry.must_be_unchanged(found, spec.kind, spec.class_name)
        else:
            found = self.registry.find(spec.kind, spec.class_)
        must_be(found, spec.kind, spec.class_name)
        return found

    def make(self, spec: ComponentSpec, args: Mapping[str, Any], path: Path_, key: str) -> Any:
        cls = self.found[spec.kind, spec.name].cls
        if self.refuses(check_arguments(cls, spec.kind, args), path, _names(cls)):
            return None
        try:
            if spec.kind == "lr_scheduler":
                self.built.components[key] = LearningRateSchedule(cls, plain(args), self.optimizer)
            else:
                self.built.components[key] = cls(**plain(args))
        except ArgumentError as error:
            self.say((*path, *error.keys), error.message)
        except Exception as error:
            self.say((*path, "class"), f"{spec.class_name} refuses its arguments: {_text(error)}")
        return self.built.components.get(key)

    def refuses(self, errors: Iterable[ArgumentError], path: Path_, known: set[str]) -> bool:
        """Say what is wrong with some keys, at the value, or at the key where that itself is wrong."""
        errors = list(errors)
        for error in errors:
            self.say((*path, *error.keys), error.message, key=len(error.keys) == 1 and error.keys[0] not in known)
        return bool(errors)

    # Policies

    def policy(self, policy: PolicySpec, usable: bool = True) -> None:
        spec = self.schedule.component(policy.kind, policy.instance_name)
        path = ("policies", policy.place, policy.kind)
        args = self.policy_args(policy, (*path, "args"))
        if spec is None or (spec.kind, spec.name) not in self.found:
            return
        where: Path_ = spec.path
        key, given = ".".join(spec.path), spec.args
        if isinstance(policy.args.get("levels"), Mapping):
            where, key = (*path, "args"), f"policies.{policy.place}"
            given = {**spec.args, "levels": policy.args["levels"]}
            self.with_levels(spec, given, where, key)
        made = self.built.components.get(key)
        if made is not None and args is not None and usable:
            self.add(policy, spec, made, args, given, where)
        elif policy.kind == "quantizer" and isinstance(made, QuantizesModules):
            self.bits(made, spec, where)
        elif KINDS[policy.kind].owns_parameters:
            self.owned(made, spec, given, policy.window, where)

    def policy_args(self, policy: PolicySpec, path: Path_) -> Any:
        cls = KINDS[policy.kind].arguments
        if cls is None:
            return ()
        if self.refuses(check_arguments(cls, policy.kind, policy.args, f"a {policy.kind}'s policy"), path, _names(cls)):
            return None
        try:
            return cls(**policy.args)
        except ArgumentError as contradiction:
            self.refuses([contradiction], path, _names(cls))
            return None

    def with_levels(self, spec: ComponentSpec, given: Mapping[str, Any], path: Path_, key: str) -> None:
        """A component of its own for a policy that replaces its `levels`."""
        if "levels" in _names(self.found[spec.kind, spec.name].cls):
            self.make(spec, given, path, key)
        else:
            self.say((*path, "levels"), f"{spec.class_name} has no levels to replace", key=True)

    def add(
        self, policy: PolicySpec, spec: ComponentSpec, component: Any, args: Any, given: Mapping[str, Any], path: Path_
    ) -> None:
        found, index = self.found[spec.kind, spec.name], policy.place
        origin = Origin(f"policies[{index}]", f"{spec.class_name} {spec.name!r}", found.distribution, found.version)
        common = {
            "index": index,
            "name": policy.instance_name,
            "component": component,
            "origin": origin,
            "window": policy.window,
        }
        if policy.kind == "quantizer" and isinstance(component, QuantizesModules):
            self.built.policies.append(QuantizationPolicy(**common, **self.bits(component, spec, path)))
        elif policy.kind == "quantizer":
            owned = self.owned(component, spec, given, policy.window, path)
            self.must_be_readable(owned, path)
            self.built.policies.append(QuantizationPolicy(**common, **owned))
        elif policy.kind in ("pruner", "regularizer"):
            owned = self.owned(component, spec, given, policy.window, path)
            if args == RegularizerArguments(keep_mask=True) and not drops_weights(component):
                where = ("policies", index, policy.kind, "args", "keep_mask")
                message = f"has no effect: {spec.class_name} drops no weights, so that no mask is made"
                self.built.warnings.append(self.schedule.source.problem(where, message, key=True))
            if policy.kind == "pruner":
                self.must_prune(policy, args)
                batchnorms = self.batchnorms(index, owned) if args.fold_batchnorm else {}
                self.built.policies.append(PruningPolicy(**common, **owned, args=args, batchnorms=batchnorms))
            else:
                self.built.policies.append(RegularizationPolicy(**common, **owned, args=args))
        elif policy.kind == "lr_scheduler":
            if self.model is not None and self.optimizer is None:
                self.say(("policies", index, policy.kind), "a learning rate needs an optimizer, and none was given")
            self.built.policies.append(LRPolicy(**common))
        else:
            self.built.policies.append(HookPolicy(**common))

    def owned(
        self, component: Any, spec: ComponentSpec, args: Mapping[str, Any], window: Window, path: Path_
    ) -> dict[str, Any]:
        """The parameters that the arguments select, with settings and keys; checked, unless the component is None."""
        if self.model is None or self.parameters is None:
            return {}
        cls = self.found[spec.kind, spec.name].cls
        selectors = given_selectors(cls, spec.kind, plain(args))
        first = {selector.text: selector for selector in reversed(selectors)}
        selection = select((each.text for each in selectors), list(self.parameters.by_name), self.parameters.aliases)
        wrong = dict(selection.wrong)
        for selector in selectors:
            twice = first[selector.text].key[0]
            message = wrong.get(selector.text) or f"{selector.text!r} stands in {twice!r} already"
            if selector.text in wrong or selector.key[0] != twice:
                self.say((*path, *selector.key), message, key=selector.in_mapping)
        chosen = {name: first[text] for name, text in selection.chosen.items()}
        try:
            return self.checked(component, chosen, window, path)
        except Exception as error:
            self.say((*spec.path, "class"), f"{spec.class_name} failed while it was being checked: {_text(error)}")
            return {}

    def checked(self, component: Any, chosen: dict[str, GivenSelector], window: Window, path: Path_) -> dict[str, Any]:
        """What is chosen and what comes along with it, once the component has said what it can't work on."""
        assert self.model is not None
        assert self.parameters is not None
        owned = self.with_settings(chosen)
        context = Context(self.model, {}, window.opening, window, owned["settings"], owned["keys"])
        if isinstance(component, Accompanied):
            companions = component.companions(owned["parameters"], context)
            beside = {name: chosen[selected] for name, selected in companions.items()}
            owned = self.with_settings(beside | chosen)
            context = replace(context, settings=owned["settings"], keys=owned["keys"])
        if hasattr(component, "check"):
            for error in component.check(owned["parameters"], context):
                self.say((*path, *error.keys), error.message)
        return owned

    def with_settings(self, chosen: Mapping[str, GivenSelector]) -> dict[str, Any]:
        """Parameters in the model's order, with what their selectors say."""
        assert self.parameters is not None
        ordered = {name: chosen[name] for name in self.parameters.by_name if name in chosen}
        return {
            "parameters": {name: self.parameters.by_name[name] for name in ordered},
            "settings": {name: selector.setting for name, selector in ordered.items()},
            "keys": {name: selector.key for name, selector in ordered.items()},
        }

    def bits(self, component: QuantizesModules, spec: ComponentSpec, path: Path_) -> dict[str, Any]:
        """What a quantizer that speaks of modules quantizes, with how many bits, and which line says so."""
        if self.model is None or self.parameters is None:
            return {}
        found = self.built.catalog = self.catalog
        try:
            wrong = list(component.check_bits(found.quantizable))
            plan = component.bits(found.quantizable)
        except Exception as error:
            self.say((*spec.path, "class"), f"{spec.class_name} failed while it was being checked: {_text(error)}")
            return {}
        self.refuses(wrong, path, set())
        if not plan and not wrong:
            what = f"{spec.class_name} quantizes nothing: it is given no bits for what there is"
            self.say((*spec.path, "class"), what)
        weights = self.bits_of_parameters(plan, path)
        unwrapped = found.unwrapped_names
        activations = {unwrapped[name]: module.activations for name, module in plan.items() if module.activations}
        return {
            "parameters": {name: self.parameters.by_name[name] for name in weights},
            "settings": weights,
            "keys": {name: (f"bits_{_PART_OF[name.rpartition('.')[2]]}",) for name in weights},
            "activations": activations,
            "bits": {name: {**_numbers(module), "by": self.line(path, module)} for name, module in plan.items()},
            "untraceable": found.untraceable | (found.untraceable_sums if _quantizes_sums(component) else {}),
        }

    def bits_of_parameters(self, plan: Mapping[str, ModuleBits], path: Path_) -> dict[str, int]:
        """Parameter -> its bits; one that several modules share has those of all of them."""
        assert self.parameters is not None
        bits: dict[str, int | None] = {}
        firsts: dict[str, str] = {}
        for name, parameter in ({name: name for name in self.parameters.by_name} | self.parameters.aliases).items():
            owner, _, part = name.rpartition(".")
            if not getattr(self.catalog.quantizable.get(owner), _PART_OF.get(part, part), False):
                continue
            module = plan.get(owner, ModuleBits())
            number, first = getattr(module, _PART_OF[part]), firsts.setdefault(parameter, name)
            if bits.setdefault(parameter, number) != number:
                these, those = (f"{b} bits" if b else "no bits" for b in (number, bits[parameter]))
                message = f"{name!r} gets {these}, and {first!r}, which is the same parameter, gets {those}"
                self.say((*path, *module.given_by), message, key=bool(module.given_by))
        return {parameter: number for parameter, number in bits.items() if number}

    @cached_property
    def catalog(self) -> Catalog:
        """All in the model that can be quantized."""
        assert self.model is not None
        return catalog(self.model)

    def line(self, path: Path_, module: ModuleBits) -> str:
        """Which line of the schedule gives a module its bits."""
        parts = [f"bits_{part}" for part, bits in _numbers(module).items() if bits]
        key = module.given_by or tuple(part for part in parts if part in self.at(path))[:1]
        where = self.schedule.source.problem((*path, *key), "", key=True).position
        return f"{where}, {module.given_by[-1]}" if module.given_by else str(where)

    def must_prune(self, policy: PolicySpec, args: PrunerArguments) -> None:
        """Say where a policy's arguments leave it nothing to do."""
        alone = policy.window.acts_once and not policy.window.opens_at_start
        if args.skip_first_minibatch and alone and not args.mini_batch_pruning_frequency:
            path = ("policies", policy.place, "pruner", "args", "skip_first_minibatch")
            when = policy.window.label()
            self.say(path, f"leaves nothing to do: {when} is the only active one, and its beginning is skipped")

    def must_be_readable(self, owned: Mapping[str, Any], path: Path_) -> None:
        """Say which parameters a quantizer can't reach."""
        keys = owned.get("keys", {})
        chosen = {id(parameter): name for name, parameter in owned.get("parameters", {}).items()}
        for module in self.model.modules() if self.model is not None else ():
            mute = [] if reads_weights_by_name(module) else list(module._parameters.values())
            for name in [chosen[id(parameter)] for parameter in mute if id(parameter) in chosen]:
                message = f"{name!r} can't be quantized: {type(module).__name__} does not read its weights by name"
                self.say((*path, *keys[name]), message)

    def batchnorms(self, index: int, owned: Mapping[str, Any]) -> dict[str, Module]:
        """The batch normalization that follows each owned weight's convolution."""
        path = ("policies", index, "pruner", "args", "fold_batchnorm")
        if self.model is None:
            return {}
        try:
            pairs = following_batchnorms(self.model)
        except Exception as error:
            self.say(path, f"torch.fx can't trace the model to find what follows its convolutions: {_text(error)}")
            return {}
        modules = {stable_name(name): module for name, module in self.model.named_modules()}
        named = {f"{stable_name(conv)}.weight": modules[stable_name(norm)] for conv, norm in pairs.items()}
        found = {name: named[name] for name in owned.get("parameters", ()) if name in named}
        if not found:
            self.say(path, "no batch normalization follows any of the convolutions that this policy prunes")
        return found

    def at(self, path: Sequence[str | int]) -> Any:
        node: Any = self.schedule.to_dict()
        for part in path:
            node = node[part]
        return node

    def say(self, path: Path_, message: str, *, key: bool = False) -> None:
        problem = self.schedule.source.problem(path, message, key=key)
        if problem not in self.built.problems:
            self.built.problems.append(problem)


def _quantizes_sums(component: QuantizesModules) -> bool:
    return bool(component.bits({"": Quantizable("add", adds=True)}))


def _numbers(module: ModuleBits) -> dict[str, int | None]:
    return {"weights": module.weights, "activations": module.activations, "bias": module.bias}


def _names(cls: type) -> set[str]:
    return set(signature_of(cls).parameters)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
