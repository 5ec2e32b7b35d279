"""Reused stateless modules, each given a copy for every place that calls it.

pt2e's quantizers distinguish a graph's patterns by the module that a node came from: one ReLU called twice (as in every
torchvision BasicBlock) can be taken for one pattern with two outputs, which is refused or left in float. A copy for
each call is the same function, and makes two patterns of it.
"""

import copy
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from raq.model.inputs import Example, as_example, copies


def unshare(network: nn.Module, example: Tensor | Example) -> nn.Module:
    """A copy of the network in which every call of a module without state goes to an instance of its own.

    example: tensors [n, ...], run in evaluation mode to see what is called how often. A module whose forward calls a
    stateless child twice is replaced by its torch.fx trace, children untouched. Where that cannot be done, or would
    change the output in evaluation mode or the names of tensors, the copy keeps sharing and a warning says so:
    torch.export may yet follow it. Modes are kept; `network` itself is not changed.
    """
    own, inputs = copy.deepcopy(network), as_example(example).inputs
    _separate_attributes(own)
    before, calls = _count_calls(own, inputs)
    parents = {
        name.rpartition(".")[0]
        for name, module in own.named_modules()
        if name and _is_stateless(module) and calls[name] > max(1, calls[name.rpartition(".")[0]])
    }
    if not parents:
        return own
    trial = _separated(copy.deepcopy(own).eval(), parents)  # a trace holds the mode that it was made in
    try:
        with torch.no_grad():
            after = trial(*copies(inputs))
    except Exception as error:  # say, an attribute that another module reads and the trace has not
        return _as_it_is(own, f"{type(error).__name__}: {error}")
    same = isinstance(before, Tensor) and isinstance(after, Tensor) and torch.equal(before, after)
    if not same or list(trial.state_dict()) != list(own.state_dict()):
        return _as_it_is(own, "the output or the names of tensors would change")
    return _separated(own, parents)


def _as_it_is(network: nn.Module, why: str) -> nn.Module:
    warnings.warn(f"modules that are called more than once stay shared: {why}", stacklevel=3)
    return network


def _separated(network: nn.Module, parents: set[str]) -> nn.Module:
    """The network with these modules replaced by their traces, the inner ones first, where there is a trace."""
    for name in sorted(parents, key=len, reverse=True):
        separated = _separate_calls(network.get_submodule(name))
        if separated is None:
            continue
        if not name:
            return separated
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, separated)
    return network


def _is_stateless(module: nn.Module) -> bool:
    """Whether two copies of it are one function for ever: no parameters, no buffers, no parts."""
    return not any(True for part in (module.parameters, module.buffers, module.children) for _ in part())


def _separate_attributes(network: nn.Module) -> None:
    """One instance under several names becomes one instance a name."""
    seen: set[int] = set()
    for owner in list(network.modules()):
        for attribute, child in list(owner._modules.items()):
            if child is None or not _is_stateless(child):
                continue
            if id(child) in seen:
                setattr(owner, attribute, copy.deepcopy(child))
            seen.add(id(child))


def _count_calls(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, Counter[str]]:
    """The output for the inputs in evaluation mode, and how often each module was called."""
    calls: Counter[str] = Counter()
    modes = {name: module.training for name, module in network.named_modules()}
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: calls.update([name]))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            output = network.eval()(*copies(inputs))
    finally:
        for handle in handles:
            handle.remove()
        for name, module in network.named_modules():
            module.training = modes[name]
    return output, calls


class _Shallow(fx.Tracer):
    """Follows one module's own forward; whatever it calls is one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Always."""
        return True


def _separate_calls(parent: nn.Module) -> fx.GraphModule | None:
    """A module as the trace of its forward, in which no stateless child is called twice; None if it has no trace."""
    if parent._forward_hooks or parent._forward_pre_hooks:
        return None
    try:
        traced = fx.GraphModule(parent, _Shallow().trace(parent), type(parent).__name__)
    except Exception:  # control flow, *args: what fx cannot follow raises many kinds; torch.export may yet follow it
        return None
    times: Counter[str] = Counter()
    for node in traced.graph.nodes:
        if node.op != "call_module" or not _is_stateless(traced.get_submodule(node.target)):
            continue
        times[node.target] += 1
        if times[node.target] > 1:
            name = f"{node.target}_{times[node.target]}"
            traced.add_submodule(name, copy.deepcopy(traced.get_submodule(node.target)))
            node.target = name
    traced.recompile()
    traced.training = parent.training
    return traced
