"""What two sizes of a free dimension cannot show: a rewrite that is right at the sizes tried, and wrong at others.

L1 and the runs look at two choices of the free dimensions.  A batch cut off at 16, or a factor that is 1 but for large
batches, is right at both.  So shapes are derived at much larger sizes, too, which costs no run; and where the rewritten
region newly reads a number that depends on a size in another than an affine way, two sizes do not determine it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from onnx import TensorProto, helper

from rewriter.constants import Array, constant
from rewriter.equivalence.operators import Operators
from rewriter.equivalence.records import failed, not_applicable
from rewriter.equivalence.regions import Region, Side
from rewriter.equivalence.spelled import Spelling
from rewriter.equivalence.static import StaticResult, compare_static
from rewriter.shapes import Bound, Shape, bind

_BATCH = 1009
_FURTHER = (32 * 61 + 1, 32 * 61, 0)
"""What other free axes get more, in order of preference: the second keeps five halvings as exact as they were."""
_AFFINE = frozenset(
    {"Add", "Concat", "Gather", "Identity", "Neg", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze"}
)
"""Operators on sizes whose results two sizes determine; Mul by a constant and Cast to integers are, too."""
_TARGETS = frozenset({"ConstantOfShape", "Expand", "Reshape"})
"""What only takes a shape from its last input: it shows in the shapes."""
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_Bounds = tuple[Bound, Bound]
_Pair = tuple[Side, Side]


def at_all_sizes(pairs: Sequence[_Pair], operators: Operators) -> Callable[[Region], StaticResult]:
    """L1, as far as what it finds at the sizes of `pairs` holds at others."""
    wide = _wide_bounds(pairs)
    spelling = Spelling(pairs)

    def compare(region: Region) -> StaticResult:
        plain, sides = spelling.of(region)
        found = compare_static(plain, sides, operators)
        if found.result.outcome == "fail" or wide is None:
            return found
        other = _other_shape(region, wide, [value.name for value in pairs[0][0].model.inputs])
        if other:
            return StaticResult(failed("L1", other))
        clause = _undetermined(region, pairs)
        if clause:
            return StaticResult(not_applicable("L1", f"Not applicable: {clause}."), sizes=True)
        return found

    return compare


def _wide_bounds(pairs: Sequence[_Pair]) -> _Bounds | None:
    """Shapes of both models at large sizes of all dimensions that the pairs vary, or of the batch alone.

    None where nothing is free, or the original does not take such sizes.
    """
    if len(pairs) < 2:
        return None
    before, after = (side.model for side in pairs[0])
    first, second = ({value.name: old.bound.shape(value.name) or () for value in before.inputs} for old, _ in pairs[:2])
    for further in _FURTHER:
        shapes = _enlarged(first, second, further)
        if shapes == first:
            return None
        bound = bind(before, shapes)
        if len(bound.problems) <= len(pairs[0][0].bound.problems):
            return bound, bind(after, shapes)
    return None


def _enlarged(first: Mapping[str, Shape], second: Mapping[str, Shape], further: int) -> dict[str, Shape]:
    return {
        name: tuple(
            size if size == other else size + further if axis else _BATCH
            for axis, (size, other) in enumerate(zip(shape, second[name], strict=True))
        )
        for name, shape in first.items()
    }


def _other_shape(region: Region, wide: _Bounds, inputs: Sequence[str]) -> str:
    """A sentence where an output of the region has another shape at large sizes; `inputs` are those of the model."""
    for name in region.outputs:
        old, new = (bound.shape(name) for bound in wide)
        if old is not None and new is not None and old != new:
            sizes = ", ".join(f"{given} {list(wide[0].shape(given) or ())}" for given in inputs)
            return f"With the inputs' shapes {sizes}, '{name}' has the shape {list(new)} instead of {list(old)}."
    return ""


def _undetermined(region: Region, pairs: Sequence[_Pair]) -> str:
    """A clause where the rewritten region reads a number that two sizes do not determine, and the original does not."""
    befores, afters = zip(*pairs, strict=True)
    known = {_definition(befores[0], name) for name, _ in _numbers(region.before, region.outputs, befores)}
    for name, kind in _numbers(region.after, region.outputs, afters):
        if _definition(afters[0], name) not in known:
            return f"how {kind} '{name}' depends on the sizes of the inputs is not determined by those tried"
    return ""


def _numbers(nodes: Sequence[int], outputs: Sequence[str], sides: Sequence[Side]) -> Iterator[tuple[str, str]]:
    """Names and operators of what is made of sizes in no affine way, and read with data or given out."""
    side = sides[0]
    todo = [name for at in nodes if not side.is_shape_arithmetic(at) for name in _operands(side, at)]
    todo += outputs
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        at = side.model.wiring.producer(name)
        if name in seen or at is None or side.bound.value(name) is None:
            continue
        seen.add(name)
        node = side.model.nodes[at]
        if not _is_affine(at, sides) and any(_differs(read, sides) for read in node.input):
            yield name, node.op_type
        todo += node.input


def _operands(side: Side, at: int) -> Sequence[str]:
    """What the node reads, but for a target shape."""
    node = side.model.nodes[at]
    return node.input[:-1] if node.op_type in _TARGETS else node.input


def _differs(name: str, sides: Sequence[Side]) -> bool:
    """Whether it is a number that is not the same at all sizes tried."""
    values: list[Array | None] = [side.bound.value(name) for side in sides]
    return any(
        one is not None and other is not None and not np.array_equal(one, other)
        for one, other in itertools.pairwise(values)
    )


def _is_affine(at: int, sides: Sequence[Side]) -> bool:
    node = sides[0].model.nodes[at]
    if node.op_type in _AFFINE:
        return True
    if node.op_type == "Mul":
        return sum(_differs(name, sides) for name in node.input) <= 1
    if node.op_type == "Cast":
        return next((entry.i for entry in node.attribute if entry.name == "to"), 0) in _INTEGERS
    return False


def _definition(side: Side, name: str) -> bytes:
    """Equal for numbers that are computed in the same way of the same."""
    upstream: set[int] = set()
    todo = [name]
    while todo:
        read = todo.pop()
        at = side.model.wiring.producer(read)
        if at is not None and at not in upstream and side.bound.value(read) is not None and not side.constant(read):
            upstream.add(at)
            todo += side.model.nodes[at].input
    found: dict[str, bytes] = {}
    for at in sorted(upstream):  # nodes come in an order in which they can be computed
        node = side.model.nodes[at]
        attributes = sorted((entry.name, repr(helper.get_attribute_value(entry))) for entry in node.attribute)
        reads = [found[read] if read in found else _source(side, read) for read in node.input]
        for place, made in enumerate(node.output):
            known = repr((node.domain, node.op_type, attributes, reads, place))
            found[made] = hashlib.sha256(known.encode()).digest()
    return found[name] if name in found else _source(side, name)


def _source(side: Side, name: str) -> bytes:
    """The bits of a constant, or the name of anything else."""
    value = constant(side.model, name) if side.constant(name) else None
    if value is None:
        return name.encode()
    return hashlib.sha256(repr((value.dtype, value.shape)).encode() + value.tobytes()).digest()
