"""Find changes of layout that undo each other, and say which nodes go with them: `pairs_near` a convolution."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from rewriter.delimit import closure
from rewriter.graph import Graph
from rewriter.layout_nodes import LAYOUT, LayoutWalk, walk_layouts
from rewriter.layouts import AxisLayout
from rewriter.per_channel import POOLS, reach
from rewriter.rule import Declined, require
from rewriter.wiring import used_names

_CONVS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class LayoutPairs:
    """Nodes that go: changes of layout, and elementwise nodes between them, which are computed before the change.

    `leaving` are the tensors that others need.  Those of them that are `back` are their source; of the others each is
    its source transposed.
    """

    changes: frozenset[int]
    between: frozenset[int]
    back: tuple[str, ...]
    transposed: tuple[str, ...]

    @property
    def leaving(self) -> tuple[str, ...]:
        return self.back + self.transposed

    def described(self, graph: Graph) -> str:
        """`2 Transpose around 3 nodes`."""
        counts = Counter(graph.model.nodes[index].op_type for index in sorted(self.changes))
        count = len(self.between)
        around = f" around {count} node{'s' * (count > 1)}" if count else ""
        return " + ".join(f"{count} {kind}" for kind, count in counts.items()) + around


@dataclass(frozen=True)
class _Found:
    pairs: LayoutPairs | None
    reason: str
    where: str
    convs: tuple[int, ...]
    """The convolutions nearest to it."""


_FOUND: WeakKeyDictionary[Graph, list[_Found]] = WeakKeyDictionary()


def pairs_near(graph: Graph, conv: int) -> LayoutPairs:
    """All pairs for which a Conv or ConvTranspose is the nearest, together; declines where there are none.

    Nearest is the one that reads them, or else the one that makes what they change, elementwise nodes, poolings and
    BatchNormalization between; of several the first.
    """
    if graph not in _FOUND:
        _FOUND[graph] = _find(graph)
    y = graph.model.nodes[conv].output[0]
    mine = [each for each in _FOUND[graph] if conv in each.convs[:1]]
    made = [each.pairs for each in mine if each.pairs]
    if made:
        return LayoutPairs(
            frozenset().union(*(each.changes for each in made)),
            frozenset().union(*(each.between for each in made)),
            tuple(name for each in made for name in each.back),
            tuple(name for each in made for name in each.transposed),
        )
    for each in mine:
        raise Declined(each.reason, each.where, matched=2)
    for each in _FOUND[graph]:
        require(conv not in each.convs, f"'{each.where}' is found from another convolution near it", y, each.where)
    far = [each.where for each in _FOUND[graph] if not each.convs]
    require(not far, f"the layout is changed and changed back at '{', '.join(far[:1])}', but no convolution is near", y)
    raise Declined("no change of layout near it is undone by another one", y)


def _find(graph: Graph) -> list[_Found]:
    """Every group of changes that undo each other, in graph order, or the reason why it must stay."""
    known = walk_layouts(graph)
    groups: list[tuple[set[int], list[str]]] = []
    for index, node in enumerate(graph.model.nodes):
        if not _is_end(graph, known, index):
            continue
        nodes, ends = _upstream(graph, known, node.output[0]), [node.output[0]]
        for group in [group for group in groups if group[0] & nodes]:
            nodes, ends = nodes | group[0], group[1] + ends
            groups.remove(group)
        groups.append((nodes, ends))
    return [_judged(graph, known, nodes, ends) for nodes, ends in groups]


def _is_end(graph: Graph, known: LayoutWalk, index: int) -> bool:
    """Whether a node changes the layout back, or is the last of several that are one Transpose together."""
    node = graph.model.nodes[index]
    moved = known.moved.get(node.output[0]) if node.output else None
    if moved is None or node.op_type not in LAYOUT:
        return False
    nodes = _upstream(graph, known, node.output[0])
    real = [at for at in nodes if graph.model.nodes[at].op_type in LAYOUT - {"Identity"}]
    if moved.layout.is_identity:
        return bool(real)
    readers = graph.model.wiring.readers(node.output[0])
    goes_on = all(graph.model.nodes[reader].op_type in LAYOUT for reader in readers)
    last = bool(graph.model.wiring.escapes(node.output[0])) or not goes_on
    return last and len(real) > 1 and not moved.source.virtual and transpose_order(moved.layout) is not None


def transpose_order(layout: AxisLayout) -> list[int] | None:
    """The perm of the Transpose that makes such a tensor from its source, or None where none does."""
    perm = layout.perm
    if perm is None or not layout.is_moved_by(perm):
        return None
    places = [place for place in perm if place is not None]
    return places if sorted(places) == list(range(len(layout.source))) and len(places) == len(perm) else None


def _upstream(graph: Graph, known: LayoutWalk, tensor: str) -> set[int]:
    """The nodes between a tensor and its sources: changes of layout, and the elementwise nodes that can be before."""
    found: set[int] = set()
    todo = [tensor]
    while todo:
        name = todo.pop()
        maker = graph.model.wiring.producer(name)
        if name not in known.moved or maker is None or maker in found:
            continue
        found.add(maker)
        node = graph.model.nodes[maker]
        todo += [node.input[0]] if maker not in known.perms else list(node.input)
    return found


def _judged(graph: Graph, known: LayoutWalk, nodes: set[int], ends: list[str]) -> _Found:
    """What becomes of a group."""
    where, near = ends[-1], _near(graph, nodes, ends)
    try:
        return _Found(_settled(graph, known, nodes), "", where, near)
    except Declined as no:
        return _Found(None, no.reason, where, near)


def _settled(graph: Graph, known: LayoutWalk, nodes: set[int]) -> LayoutPairs:
    """The nodes that go, once it is known who else needs the tensors between them; declines where nothing is saved."""
    model = graph.model
    made = [name for index in sorted(nodes) for name in model.nodes[index].output if name]
    sources = {known.moved[name].source.tensor for name in made}
    inside = closure(model, nodes, sources)
    needed = [n for n in made if model.wiring.escapes(n) or set(model.wiring.readers(n)) - inside]
    require(needed, "nothing reads what it is changed to")
    back = [name for name in needed if known.moved[name].layout.is_identity]
    stay: set[int] = set()
    transposed = []
    for name in needed:
        if name in back:
            continue
        moved, upstream = known.moved[name], _upstream(graph, known, name)
        if not upstream & known.perms.keys() and (len(upstream) < 2 or transpose_order(moved.layout) is None):
            stay |= upstream
            continue
        movable = transpose_order(moved.layout) is not None
        require(movable, f"'{name}' is needed as it lies, and is no Transpose of its source")
        transposed.append(name)
    changes = frozenset(nodes) - known.perms.keys() - stay
    saved = len([index for index in changes if model.nodes[index].op_type != "Identity"]) - len(transposed)
    others = ", ".join(f"'{name}'" for name in needed if name not in back)
    require(saved > 0, f"as many changes of layout would stay, because others need {others} as it lies")
    return LayoutPairs(changes, frozenset(nodes) & known.perms.keys(), tuple(back), tuple(transposed))


def _near(graph: Graph, nodes: set[int], ends: list[str]) -> tuple[int, ...]:
    """Convolutions that read what leaves a group, the nearest first, then those that make what enters it."""
    model = graph.model
    read = {name for index in nodes for name in used_names([model.nodes[index]])}
    made = {name for index in nodes for name in model.nodes[index].output}
    given = sorted(name for name in made if set(model.wiring.readers(name)) - nodes or name in ends)
    entering = sorted(name for name in read if name not in made)
    down = reach(model, given, _CONVS, POOLS, up=False)
    return tuple(dict.fromkeys(down + reach(model, entering, _CONVS, POOLS, up=True)))
