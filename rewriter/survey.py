"""Survey: every convolution of a model with its form and cost, and what each pass would do to it or why not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rewriter.base import Pass
from rewriter.errors import BadInput
from rewriter.graph import Graph
from rewriter.lifting import convs, weight_shape
from rewriter.propose import ask, forbidden, unreachable_sites
from rewriter.rule import Attempt
from rewriter.shapes import Shape

_TELLING: Final[Mapping[str, tuple[str, ...]]] = {
    "dense": ("split-separable", "dense-to-grouped", "fuse-separable", "fold-affine"),
    "pointwise": ("dense-to-grouped", "fuse-separable", "fold-affine"),
}
"""What could still be done to a convolution of that form: what these passes answer is told, near miss or not."""
_ASKED_OF_ALL: Final = "depthwise-sum-to-grouped"
"""It looks behind every convolution: that nothing is there says little of one that is not depthwise."""


@dataclass(frozen=True)
class Opinion:
    """What one pass says about one convolution."""

    pass_name: str
    applies: bool
    reason: str
    """What it would do, or why it does not apply."""
    matched: int = 0
    """How near the miss is: 0 is a trivial one."""


@dataclass(frozen=True)
class Site:
    """One convolution: `site` is its output tensor; sizes are None where they are not known before the model runs."""

    site: str
    form: str
    group: int
    channels_in: int | None
    channels_out: int | None
    kernel: Shape | None
    output_shape: Shape | None
    macs: int | None
    """Multiply-accumulates at the output shape given."""
    passes: tuple[Opinion, ...]

    @property
    def applies(self) -> bool:
        """Whether any pass applies."""
        return any(entry.applies for entry in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: `site, form, group, channels_in, channels_out, kernel, output_shape, macs, passes[]`."""
        return {
            "site": self.site,
            "form": self.form,
            "group": self.group,
            "channels_in": self.channels_in,
            "channels_out": self.channels_out,
            "kernel": None if self.kernel is None else list(self.kernel),
            "output_shape": None if self.output_shape is None else list(self.output_shape),
            "macs": self.macs,
            "passes": [
                {"pass": entry.pass_name, "applies": entry.applies, "reason": entry.reason} for entry in self.passes
            ],
        }


def survey(graph: Graph, rules: Mapping[str, Pass], allow: Collection[str] = ()) -> tuple[list[Site], list[Attempt]]:
    """Every Conv and whatever else passes look at in the main graph, and the convolutions no pass is asked about."""
    opinions: dict[int, list[Opinion]] = {index: [] for index in convs(graph.model)}
    forms: dict[int, str] = {}
    for rule in rules.values():
        refused = {attempt.site: attempt for attempt in forbidden(graph, rule, allow)}
        for node in rule.sites(graph):
            opinion = _opinion(graph, rule, node, refused)
            opinions.setdefault(node, []).append(opinion)
            if opinion.applies and rule.takes:
                forms[node] = rule.takes
    sites = [_site(graph, node, forms.get(node), tuple(found)) for node, found in sorted(opinions.items())]
    return sites, unreachable_sites(graph.model)


def explanation(site: Site) -> tuple[Opinion, ...]:
    """Why nothing applies to a convolution: the answers that tell most, the first ones first; empty where one applies.

    Of those that could be done to its form, then near misses; where there is neither, all answers.
    """
    if site.applies:
        return ()
    form = site.form.partition(" transposed")[0]
    first = () if form != site.form else _TELLING.get(form, ())
    by_pass = {entry.pass_name: entry for entry in site.passes}
    told = [by_pass[name] for name in first if name in by_pass]
    others = sorted((entry for entry in site.passes if entry not in told), key=lambda entry: -entry.matched)
    told += [entry for entry in others if entry.matched > (1 if first and entry.pass_name == _ASKED_OF_ALL else 0)]
    return tuple(told or others)


def _opinion(graph: Graph, rule: Pass, node: int, refused: Mapping[str, Attempt]) -> Opinion:
    answer = refused.get(graph.model.nodes[node].output[0]) or ask(graph, rule, node, {})
    if isinstance(answer, Attempt):
        return Opinion(rule.name, False, answer.reason, answer.matched)
    return Opinion(rule.name, True, f"{answer.summary}: {answer.safety.value}.")


def _site(graph: Graph, node: int, form: str | None, passes: tuple[Opinion, ...]) -> Site:
    proto = graph.model.nodes[node]
    group = next((int(entry.i) for entry in proto.attribute if entry.name == "group"), 1)
    weight = _weight_shape(graph, node)
    shape = _one_of_batch(graph, proto.output[0])
    macs = None
    if proto.op_type == "ConvTranspose":  # its weight is [C, M/G, *K], and each input element meets all of a row
        entering = _one_of_batch(graph, proto.input[0])
        macs = None if weight is None or entering is None else math.prod(entering) * math.prod(weight[1:])
        weight = weight and (weight[1] * group, weight[0] // max(group, 1), *weight[2:])
        form = form or f"{_form(weight, group)} transposed"
    elif weight is not None and shape is not None:
        macs = math.prod(shape) * math.prod(weight[1:])
    return Site(
        site=proto.output[0],
        form=form or _form(weight, group),
        group=group,
        channels_in=None if weight is None else weight[1] * group,
        channels_out=None if weight is None else weight[0],
        kernel=None if weight is None else weight[2:],
        output_shape=shape,
        macs=macs,
        passes=passes,
    )


def _one_of_batch(graph: Graph, tensor: str) -> Shape | None:
    """The tensor's shape, of one batch entry where the batch is free."""
    shape = graph.bindings[0].bound.shape(tensor)
    return (1, *shape[1:]) if graph.bindings[0].chosen and shape is not None else shape


def _weight_shape(graph: Graph, node: int) -> Shape | None:
    """The weight's shape, constant or not."""
    try:
        known = weight_shape(graph.model, node)
    except BadInput:
        known = None
    return known or graph.bindings[0].bound.shape(graph.model.nodes[node].input[1])


def _form(weight: Shape | None, group: int) -> str:
    if weight is None:
        return "unknown"
    if group == 1:
        return "pointwise" if math.prod(weight[2:]) == 1 else "dense"
    if weight[1] > 1:
        return "grouped"
    return "depthwise" if weight[0] == group else f"depthwise x{weight[0] // group}"
