"""What two sizes of a free dimension cannot show: a rewrite that is right at the sizes tried, and wrong at others.

L1 and the runs look at two choices of the free dimensions.  A batch cut off at 16, or a factor that is 1 but for large
batches, is right at both.  So shapes are derived at much larger sizes, too, which costs no run; and where the rewritten
region newly reads a number that depends on a size in another than an affine way, two sizes do not determine it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from rewriter.constants import constant
from rewriter.equivalence.operators import Operators
from rewriter.equivalence.records import failed, not_applicable
from rewriter.equivalence.regions import Region, Side
from rewriter.equivalence.spelled import Spelling
from rewriter.equivalence.static import StaticResult, compare_static
from rewriter.shapes import Bound, Shape, bind

_BATCH = 1009
_FURTHER = (32 * 61 + 1, 32 * 61, 0)
"""What other free axes get more, in order of preference: the second keeps five halvings as exact as they were."""
_AFFINE = frozenset({"Add", "Concat", "Identity", "Neg", "Reshape", "Split", "Squeeze", "Sub", "Unsqueeze"})
"""Operators on sizes whose results two sizes determine; by constants Mul, Gather and Slice are, too."""
_PICKS = frozenset({"Gather", "Slice"})
_TARGETS = frozenset({"ConstantOfShape", "Expand", "Reshape"})
"""What only takes a shape from its last input: products of sizes, and sizes of any tensor, show in the shapes."""
_KEEPS = frozenset(
    """Conv BatchNormalization Add Sub Mul Div Sum PRelu Softmax Transpose MaxPool AveragePool InstanceNormalization
    LayerNormalization Concat Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Softplus Clip Identity Dropout
    Gelu Mish Swish Erf Exp Sqrt Abs Neg""".split()  # noqa: SIM905 - readable
)
"""Operators whose results have the sizes of what they read, or by a constant more or less, where nothing is strided."""
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
        if found.result.outcome == "fail" or len(pairs) < 2:
            return found
        inputs = [value.name for value in pairs[0][0].model.inputs]
        other = _other_shape(region, wide, inputs) if wide is not None else ""
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
    always = bind(side.model, {}, for_every_input=True)
    made = _of_other_sizes(nodes, side)
    numbers = _made_of_sizes(nodes, side)
    data = [
        at for at in nodes if not side.is_shape_arithmetic(at) and not numbers.issuperset(side.model.nodes[at].output)
    ]
    todo = [entry for at in data for entry in _operands(side, at)]
    todo += [(name, False) for name in outputs]
    seen: set[tuple[str, bool]] = set()
    while todo:
        name, target = todo.pop()
        at = side.model.wiring.producer(name)
        is_number = side.bound.value(name) is not None or name in numbers
        if (name, target) in seen or at is None or not is_number or side.constant(name):
            continue
        seen.add((name, target))
        node = side.model.nodes[at]
        if always.value(name) is not None or _fixed_sizes(node, side, always):
            continue
        if not _is_affine(node, side, made, target=target):
            yield name, node.op_type
        todo += [(read, target) for read in node.input if read]


def _of_other_sizes(nodes: Sequence[int], side: Side) -> set[str]:
    """What the nodes make whose sizes may be no affine function of those of what enters: behind parts and strides."""
    found: set[str] = set()
    for at in sorted(nodes):
        node = side.model.nodes[at]
        strided = any(entry.name == "strides" and any(step != 1 for step in entry.ints) for entry in node.attribute)
        if strided or node.op_type not in _KEEPS or not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _fixed_sizes(node: onnx.NodeProto, side: Side, always: Bound) -> bool:
    """Whether the node picks sizes of a tensor that are the same for every input the model takes."""
    shape = side.model.wiring.producer(node.input[0]) if node.op_type == "Gather" and node.input else None
    of = side.model.nodes[shape] if shape is not None else None
    picks = constant(side.model, node.input[1]) if of is not None and side.constant(node.input[1]) else None
    if of is None or of.op_type != "Shape" or of.attribute or picks is None:
        return False
    kind = always.types.get(of.input[0])
    dims = kind.tensor_type.shape.dim if kind is not None and kind.tensor_type.HasField("shape") else ()
    return all(-len(dims) <= int(at) < len(dims) and dims[int(at)].dim_value > 0 for at in picks.reshape(-1))


def _made_of_sizes(nodes: Sequence[int], side: Side) -> set[str]:
    """What the nodes make of sizes and constants alone, and an empty name: also what is too large to be followed."""
    found = {""}
    for at in sorted(nodes):
        node = side.model.nodes[at]
        alone = all(name in found or side.constant(name) or side.bound.value(name) is not None for name in node.input)
        if node.op_type in ("Shape", "Size") or (alone and node.input):
            found.update(node.output)
    return found


def _operands(side: Side, at: int) -> list[tuple[str, bool]]:
    """What the node reads, and whether that is a target shape."""
    node = side.model.nodes[at]
    last = len(node.input) - 1 if node.op_type in _TARGETS else -1
    return [(name, place == last) for place, name in enumerate(node.input) if name]


def _is_affine(node: onnx.NodeProto, side: Side, made: Collection[str], *, target: bool) -> bool:
    """Whether two sizes determine what the node makes of sizes; `made` is what may have any size itself."""
    fixed = [side.constant(name) for name in node.input if name]
    if node.op_type in _AFFINE:
        return True
    if node.op_type in ("Shape", "Size"):
        return target or (node.op_type == "Shape" and node.input[0] not in made)
    if node.op_type in _PICKS:
        return all(fixed[1:])
    if node.op_type == "Mul":
        return target or fixed.count(False) <= 1
    if node.op_type == "Cast":
        return next((entry.i for entry in node.attribute if entry.name == "to"), 0) in _INTEGERS
    return all(fixed)


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
