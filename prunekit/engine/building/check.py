"""The second step: components are made of their arguments, and each policy is checked against the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunekit.components.arguments import check_arguments, signature_of
from prunekit.components.context import Context
from prunekit.components.curves import CURVES, changes_in
from prunekit.components.kinds import KINDS
from prunekit.components.pruner import Accompanied
from prunekit.components.selecting import GivenSelector, given_selectors, selecting_arguments
from prunekit.engine.building.bits import planned
from prunekit.engine.building.find import FoundComponents
from prunekit.engine.building.shapes import with_shapes
from prunekit.engine.checked import BitsPlan, Checked, GivenModel, Made, Owned
from prunekit.engine.policies import POLICIES
from prunekit.engine.problems import Problems, text_of
from prunekit.errors import ArgumentError
from prunekit.model.optimizer import groups_of
from prunekit.model.selectors import select
from prunekit.progress import Window
from prunekit.quantization.quantizable import QuantizesModules
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import PolicySpec
from prunekit.schedule.yaml_source import plain


class Checker:
    """Checks a schedule of which all that it names is found.

    Args:
        schedule: what it says of components and policies.
        found: what its components name.
        network: None where only what does not depend on one is to be checked.
        problems: where to say what is wrong.
    """

    def __init__(
        self, schedule: Schedule, found: FoundComponents, network: GivenModel | None, problems: Problems
    ) -> None:
        self._schedule, self._found, self._network, self._problems = schedule, found, network, problems
        self.made: dict[str, Made] = {}

    def check(self) -> list[Checked]:
        """The policies that can be bound; also of the others everything is said that can be."""
        for spec in self._schedule.components:
            if found := self._found.get((spec.kind, spec.name)):
                args = found.arguments(spec.args)
                self._make(Made(spec, found.of_class.found, ".".join(spec.path), args), found.usable)
        checked = [self._policy(policy) for policy in self._schedule.policies]
        for policy in self._schedule.without_window:
            self._policy(policy)
        return [policy for policy in checked if policy is not None]

    def _make(self, made: Made, usable: bool = True) -> Made:
        """The component itself, if its arguments are right, and `usable`: each name among them means something."""
        cls, spec = made.found.cls, made.spec
        wrong = check_arguments(cls, spec.kind, made.args)
        if not self._problems.refuse(wrong, made.place, signature_of(cls).parameters) and usable:
            try:
                groups = groups_of(self._network.optimizers if self._network else ())
                # A copy of the arguments, so that no component gets hold of the schedule's own.
                component = POLICIES[spec.kind].make_component(cls, plain(made.args), groups)
                made = replace(made, component=component)
            except ArgumentError as error:
                self._problems.refuse([error], made.place)
            except Exception as error:
                what = f"{spec.class_name} refuses its arguments: {text_of(error)}"
                self._problems.add(made.class_path, what)
        self.made[made.key] = made
        return made

    def _policy(self, policy: PolicySpec) -> Checked | None:
        args = self._policy_args(policy)
        spec = self._schedule.component(policy.kind, policy.instance_name)
        made = None if spec is None else self.made.get(".".join(spec.path))
        if made is not None and isinstance(policy.args.get("levels"), Mapping):
            made = self._with_levels(made, policy)
        if made is None:
            return None
        owned, bits = self._owned(made, policy.window)
        usable = made.component is not None and args is not None
        return Checked(policy, made, args, owned, bits) if usable else None

    def _policy_args(self, policy: PolicySpec) -> Any:
        """The policy's own arguments; None where they are wrong."""
        cls = KINDS[policy.kind].arguments
        if cls is None:
            return ()
        wrong = list(check_arguments(cls, policy.kind, policy.args, f"{KINDS[policy.kind].described}'s policy"))
        try:
            args = None if wrong else cls(**policy.args)
        except ArgumentError as contradiction:
            args, wrong = None, [contradiction]
        place = ("policies", policy.place, policy.kind, "args")
        self._problems.refuse(wrong, lambda keys: (*place, *keys), signature_of(cls).parameters)
        return args

    def _with_levels(self, made: Made, policy: PolicySpec) -> Made:
        """A component of its own for a policy that replaces its `levels`."""
        place = ("policies", policy.place, policy.kind, "args", "levels")
        if "levels" not in signature_of(made.found.cls).parameters:
            self._problems.add(place, f"{made.spec.class_name} has no levels to replace", key=True)
            return made
        for keys, change in changes_in(policy.args["levels"]):
            if isinstance(change["curve"], str) and change["curve"] not in CURVES:
                what = "is none of prunekit's own curves; one that is installed is for the component's own levels"
                self._problems.add((*place, *keys, "curve"), f"{change['curve']!r} {what}")
        args = {**made.args, "levels": policy.args["levels"]}
        usable = self._found[made.spec.kind, made.spec.name].usable
        return self._make(Made(made.spec, made.found, f"policies.{policy.place}", args, levels=place), usable)

    # What a policy owns

    def _owned(self, made: Made, window: Window) -> tuple[Owned, BitsPlan]:
        """What a policy of this component decides about, with what the component itself says against it."""
        if self._network is None or not KINDS[made.spec.kind].owns_parameters:
            return Owned(), BitsPlan()
        try:
            if not issubclass(made.found.cls, QuantizesModules):
                return self._selected(made, self._network, window), BitsPlan()
            if made.component is not None:
                return planned(made, self._network, self._problems)
        except Exception as error:
            what = f"{made.spec.class_name} failed while it was being checked: {text_of(error)}"
            self._problems.add(made.class_path, what)
        return Owned(), BitsPlan()

    def _selected(self, made: Made, network: GivenModel, window: Window) -> Owned:
        """The parameters that the arguments select, and their companions, once the component has checked them."""
        chosen, component = self._chosen(made, network), made.component
        owned = Owned.of(chosen, network)
        context = Context(network.model, {}, window.opening, window, owned.settings, owned.keys)
        if isinstance(component, Accompanied):
            companions = component.companions(owned.parameters, context)
            beside = {name: chosen[selected] for name, selected in companions.items()}
            # In this order: a companion that is selected itself stays what it is.
            owned = Owned.of(beside | chosen, network)
            context = replace(context, settings=owned.settings, keys=owned.keys)
        if hasattr(component, "check"):
            self._problems.refuse(component.check(owned.parameters, context), made.place)
        return owned

    def _chosen(self, made: Made, network: GivenModel) -> dict[str, GivenSelector]:
        """Parameter -> the selector that chose it; selectors that choose nothing are said, each at its own place."""
        selectors = given_selectors(made.found.cls, made.spec.kind, plain(made.args))
        if not selectors and made.component is not None:
            keys = " or ".join(repr(a.name) for a in selecting_arguments(made.found.cls, made.spec.kind))
            self._problems.add(made.class_path, f"{made.spec.class_name} selects no parameter; give it {keys}")
        # Reversed, so that of equal texts the first one stays.
        first = {selector.text: selector for selector in reversed(selectors)}
        names = network.parameters
        selection = select((selector.text for selector in selectors), list(names.by_name), names.aliases)
        wrong = dict(selection.wrong)
        for selector in selectors:
            argument = first[selector.text].key[0]
            twice = f"{selector.text!r} stands in {argument!r} already" if selector.key[0] != argument else None
            if message := wrong.get(selector.text, twice):
                self._problems.add(made.place(selector.key), message, key=selector.in_mapping)
        chosen = {name: first[text] for name, text in selection.chosen.items()}
        return with_shapes(chosen, made, network, self._problems)
