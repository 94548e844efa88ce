"""fold-affine: fold scales, shifts, BatchNormalization and padding beside a convolution into its weights.

    y = a * Conv(x, W, c) + b           becomes   y = Conv(x, a*W, a*c + b)          a, b [M], row by row
    y = Conv(a*x + b, W, c)             becomes   y = Conv(x, W', c')                a, b [C]
                                                  W'[m, i, k] = W[m, i, k]*a[i],  c' = c + sum_ik W[m, i, k]*b[i]
    y = Conv(Pad(x, p), W, c, pads=q)   becomes   y = Conv(x, W, c, pads=p+q)

with W [M, C/G, *K].  Affine nodes are BatchNormalization in inference, and Mul, Add, Sub and Div with a constant that
is a scalar or one number per channel, on either side.  Chains of them are folded as far as they go; where one has other
readers, it stays.  Behind a Concat of convolutions, each of these takes its own channels' part (MixNet).

Border rule: a shift before a convolution with padding is refused, since the padding would have to be -b/a, not 0.  A
scale is fine, and so is a shift behind a Pad: what it is folded into has no padding yet.

Settings: none.
Conditions: constant weights; results that the weights' type holds with full precision.  Any rank, group and float type.
What `optimize` measures: what ONNX Runtime does not fold by itself: constants on the left or of another shape than per
channel, Sub, Div, all that stands before a Conv but a plain Pad, all that stands behind a Concat.
Safety: ROUNDING, computed in float64 and rounded once; a Pad alone is EXACT.
Source: as onnx/optimizer's fuse_bn_into_conv; the border rule is DESIGN section 6's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewriter import (
    AFFINE,
    Builder,
    ConvSite,
    Declined,
    Graph,
    Match,
    NodePattern,
    Op,
    Pass,
    Rewrite,
    Safety,
    Settings,
    Var,
    closure,
    data_operand,
    lift,
    maybe,
    only_reader,
    read_affine,
    read_pad,
    require,
    window_of,
    with_window,
)
from rewriter.conv import Affine, Folding, NotRepresentable, Window


class FoldAffine(Pass):
    """Affine nodes and Pad around Conv -> Conv."""

    name = "fold-affine"
    safety = Safety.ROUNDING

    @staticmethod
    def pattern(op: Op, x: Var, w: Var, b: Var) -> NodePattern:
        """A convolution with or without bias; what is beside it is followed, not matched."""
        return op.Conv(x, w, maybe(b))

    def choices(self, graph: Graph, found: Match) -> tuple[Settings, ...]:
        """One way, where ONNX Runtime would not do it by itself."""
        region = _region(graph, found)
        where = region.members[0].site.y
        require(not _is_done_anyway(graph, region), "ONNX Runtime folds what is beside it by itself", where)
        return ({},)

    def rewrite(self, graph: Graph, found: Match, settings: Settings) -> Rewrite:  # noqa: ARG002 - it has no settings
        return _emit(self.name, graph, _region(graph, found))


@dataclass(frozen=True)
class _Chain:
    """Affine nodes in a row behind a tensor: their positions, what they compute, their last output, why it ends."""

    nodes: tuple[int, ...]
    maps: tuple[Affine, ...]
    end: str
    why: Declined


@dataclass(frozen=True)
class _Member:
    """A convolution, with the nodes before it, nearest first, and its own chain behind."""

    site: ConvSite
    x: str
    before: tuple[int, ...]
    maps: tuple[Affine, ...]
    """What those nodes compute that are no Pad, nearest first."""
    pads: Window | None
    """Its window, where a Pad is folded into it."""
    behind: _Chain
    why: Declined
    """Why what comes before `before` is not folded."""


@dataclass(frozen=True)
class _Region:
    """What is folded together: one convolution, or those of a Concat and the chain behind that."""

    members: tuple[_Member, ...]
    concat: int | None = None
    chain: _Chain | None = None


def _region(graph: Graph, found: Match) -> _Region:
    """What is folded at a convolution; declines where that is nothing, with the nearest thing that could not be."""
    site = lift(graph.model, found.node)
    member = _member(graph, site)
    try:
        return _concatenated(graph, member)
    except Declined as no:
        require(no.matched < 3, no.reason, *no.where, matched=no.matched)
        if member.before or member.behind.nodes:
            return _Region((member,))
        nearest = max((member.why, member.behind.why, no), key=lambda why: why.matched)
    if not nearest.matched:
        require(False, "no affine node and no Pad stands before or behind it", site.y, matched=0)
    raise nearest


def _member(graph: Graph, site: ConvSite) -> _Member:
    """The convolution with all that can be folded before it, and the affine chain behind it."""
    rank = len(site.kernel) + 2
    chain = _behind(graph, site.y, site.m, rank)
    now = _Member(site, site.x, (), (), None, chain, _END)
    reader = site.index
    while True:
        index = graph.model.wiring.producer(now.x)
        if index is None:
            return replace(now, why=_END)
        try:
            now = _one_more(graph, now, index, reader, rank)
        except Declined as no:
            return replace(now, why=no)
        reader = index


_END = Declined("nothing stands there")


def _one_more(graph: Graph, now: _Member, index: int, reader: int, rank: int) -> _Member:
    """With the node before folded as well; declines where it cannot be."""
    node = graph.model.nodes[index]
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    require(kind in AFFINE | {"Pad"}, f"{node.op_type} before it is neither affine nor Pad", node.output[0], matched=0)
    x = data_operand(graph, index)
    require(only_reader(graph, now.x) == reader, f"'{now.x}' has another reader", now.x)
    before = (*now.before, index)
    if kind == "Pad":
        begin, end = read_pad(graph, index, rank)
        window = now.pads or _own_window(now.site)
        wider = replace(window, begin=_sum(window.begin, begin), end=_sum(window.end, end))
        return replace(now, x=x, before=before, pads=wider)
    affine = read_affine(graph, index, now.site.c, rank, made_by_conv=False)
    if affine.shifts:
        where = node.output[0]
        free = f"{kind} '{where}' shifts what it pads: the padding would have to be -b/a, not 0"
        require(not _is_padded(now), free, now.site.y, where)
    return replace(now, x=x, before=before, maps=(*now.maps, affine))


def _own_window(site: ConvSite) -> Window:
    """The window of a convolution with pads of its own or none; declines where they depend on its input's size."""
    same = any(entry.name == "auto_pad" and entry.s.startswith(b"SAME") for entry in site.node.attribute)
    require(not same, "its auto_pad SAME depends on the size that the Pad before it gives", site.y)
    return window_of(site.node, site.kernel, ())


def _is_padded(now: _Member) -> bool:
    if now.pads is None and any(entry.name == "auto_pad" for entry in now.site.node.attribute):
        try:
            window = _own_window(now.site)
        except Declined:  # SAME: no padding where a kernel of 1 leaves nothing to pad
            return any(size != 1 for size in now.site.kernel)
    else:
        window = now.pads or window_of(now.site.node, now.site.kernel, ())
    return any(window.begin + window.end)


def _behind(graph: Graph, tensor: str, channels: int, rank: int) -> _Chain:
    """The affine nodes that alone read the tensor, one after the other."""
    nodes: list[int] = []
    maps: list[Affine] = []
    while True:
        try:
            index = only_reader(graph, tensor, matched=int(_is_scaled_somewhere(graph, tensor)))
            require(graph.model.nodes[index].op_type in AFFINE, "no affine node reads it", tensor, matched=0)
            require(data_operand(graph, index) == tensor, f"'{tensor}' is a parameter there", tensor)
            maps.append(read_affine(graph, index, channels, rank, made_by_conv=True))
        except Declined as no:
            return _Chain(tuple(nodes), tuple(maps), tensor, no)
        nodes.append(index)
        tensor = graph.model.nodes[index].output[0]


def _is_scaled_somewhere(graph: Graph, tensor: str) -> bool:
    """Whether one of the nodes that read the tensor is an affine one, with constants."""
    for index in graph.model.wiring.readers(tensor):
        try:
            if graph.model.nodes[index].op_type in AFFINE and data_operand(graph, index) == tensor:
                return True
        except Declined:
            continue
    return False


def _concatenated(graph: Graph, member: _Member) -> _Region:
    """The convolutions that a Concat joins and the affine chain behind it; declines with matched 3 to leave it to one.

    A convolution whose Concat nothing affine follows is folded by itself.
    """
    model = graph.model
    index = only_reader(graph, member.behind.end, matched=0)
    node, rank = model.nodes[index], len(member.site.kernel) + 2
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), None)
    joins = node.op_type == "Concat" and node.domain in ("", "ai.onnx") and axis in (1, 1 - rank)
    require(joins, "no Concat of channels reads it", node.output[0], matched=0)
    follows = only_reader(graph, node.output[0], matched=0)
    require(model.nodes[follows].op_type in AFFINE, "nothing affine follows the Concat", node.output[0], matched=0)
    twice = len(set(node.input)) < len(node.input)
    require(not twice, f"Concat '{node.output[0]}' joins a tensor with itself", node.output[0])
    members = tuple(_joined(graph, name, index) for name in node.input)
    chain = _behind(graph, node.output[0], sum(one.site.m for one in members), rank)
    if not chain.nodes:
        raise chain.why
    first = min(members, key=lambda one: one.site.index)
    with_it = f"it is folded together with '{first.site.y}', which Concat '{node.output[0]}' joins it with"
    require(first.site.index == member.site.index, with_it, member.site.y, matched=3)
    return _Region(members, index, chain)


def _joined(graph: Graph, tensor: str, concat: int) -> _Member:
    """The convolution whose chain ends in an operand of a Concat; declines where there is none."""
    name = tensor
    while True:
        index = graph.model.wiring.producer(name)
        kind = "an input" if index is None else graph.model.nodes[index].op_type
        from_conv = index is not None and (kind == "Conv" or kind in AFFINE)
        where = graph.model.nodes[concat].output[0]
        require(from_conv, f"Concat '{where}' joins it with '{tensor}', which no convolution makes ({kind})", where)
        assert index is not None
        if kind == "Conv":
            member = _member(graph, lift(graph.model, index))
            alone = member.behind.end == tensor and only_reader(graph, tensor) == concat
            require(alone, f"'{tensor}', which Concat '{where}' joins it with, cannot be changed alone", where, tensor)
            return member
        name = data_operand(graph, index)


def _is_done_anyway(graph: Graph, region: _Region) -> bool:
    """Whether ONNX Runtime's own fusions (level 1) fold all of it."""
    if region.concat is not None:
        return False
    (member,) = region.members
    if member.before:
        automatic = any(entry.name == "auto_pad" for entry in member.site.node.attribute)
        if automatic or [graph.model.nodes[index].op_type for index in member.before] != ["Pad"]:
            return False
    channels = member.site.m
    for index, affine in zip(member.behind.nodes, member.behind.maps, strict=True):
        node = graph.model.nodes[index]
        if node.op_type == "BatchNormalization":
            continue
        right = node.op_type in ("Mul", "Add") and data_operand(graph, index) == node.input[0]
        if not right or affine.channels != channels:
            return False
    return True


def _emit(name: str, graph: Graph, region: _Region) -> Rewrite:
    model = graph.model
    last = (region.chain or region.members[0].behind).end
    build = Builder(model, f"{last}/folded")
    begin, outputs = 0, []
    for member in region.members:
        maps = list(member.behind.maps)
        if region.chain is not None:
            maps += [affine.part(begin, begin + member.site.m) for affine in region.chain.maps]
        begin += member.site.m
        outputs.append(_conv(build, member, maps, last if region.concat is None else None))
    anchor = region.members[0].site.index
    behind = [node for member in region.members for node in member.behind.nodes]
    if region.concat is not None and region.chain is not None:
        anchor = region.concat
        build.replay(model.nodes[anchor], outputs)
        build.nodes[-1].output[:] = [last]
        behind += [anchor, *region.chain.nodes]
    before = [node for member in region.members for node in member.before]
    convs = [member.site.index for member in region.members]
    folded = [model.nodes[index].op_type for index in sorted(before + behind) if index != region.concat]
    exact = not any(member.maps or member.behind.nodes for member in region.members) and region.concat is None
    return Rewrite(
        name,
        last,
        Safety.EXACT if exact else Safety.ROUNDING,
        closure(model, [*convs, *before, *behind], build.reads),
        anchor,
        tuple(build.nodes),
        tuple(build.initializers),
        f"{'Conv' if len(convs) == 1 else f'{len(convs)} Conv'} with {' and '.join(folded)} -> the weights",
    )


def _conv(build: Builder, member: _Member, maps: Sequence[Affine], output: str | None) -> str:
    """The convolution with everything folded; its own weights where only pads are."""
    site = member.site
    node = site.node if member.pads is None else with_window(site.node, member.pads)
    if not maps and not member.maps:
        return build.conv(node, member.x, site.node.input[1], site.bias_name, site.group, output)
    folding = Folding.of(site.weight, site.bias, site.group)
    for affine in member.maps:
        folding = folding.before(affine)
    for affine in maps:
        folding = folding.behind(affine)
    try:
        weight, bias = folding.rounded(site.weight.dtype)
    except NotRepresentable as no:
        raise Declined(str(no), site.y) from no
    made = None if bias is None else build.constant(bias, "bias")
    return build.conv(node, member.x, build.constant(weight, "weight"), made, site.group, output)


def _sum(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))
