"""Symbolic evaluation of a linear region at concrete shapes: what every element is made of.

Data movement runs ONNX's own reference operators on position numbers, so no knowledge of axes is repeated here; sums,
scales and biases become terms, coefficients and offsets; the output of each convolution becomes new symbols, with a
record of the convolution and of the input channels it reads.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from rewriter.constants import Array, attributes, constant
from rewriter.contrib import conv_of
from rewriter.equivalence import forms
from rewriter.equivalence.convs import ConvUse, Family, conv_use, geometry_of, offset_of, upsampled_use
from rewriter.equivalence.forms import Form, Impossible, Unsupported
from rewriter.equivalence.fused import ending, is_conv, is_default, is_fused_conv, is_transposed, residual
from rewriter.equivalence.matrices import constant_product, is_matrix_product, matrix_product
from rewriter.equivalence.normalization import batch_normalization
from rewriter.equivalence.precision import significand_bits
from rewriter.equivalence.reference import require_zero_padding, run_reference
from rewriter.equivalence.regions import Side
from rewriter.equivalence.repeats import resize
from rewriter.session import reason
from rewriter.shapes import Shape, reshape_target

Value = Form | Array

MOVES = frozenset(
    """Transpose Reshape Identity Flatten Squeeze Unsqueeze Slice Gather Split Concat Pad Expand Tile
    DepthToSpace SpaceToDepth GatherElements GatherND""".split()  # noqa: SIM905 - readable
)
SUMS = frozenset(
    {"ReduceSum", "ReduceMean", "GlobalAveragePool", "Sum", "Add", "Sub", "Neg", "Mul", "Div", "BatchNormalization"}
)
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
LINEAR = MOVES | SUMS | PRODUCTS | {"Dropout", "Cast", "Resize", "Shape", "Size", "Constant"}
"""Operators that can be linear in their run-time operand; whether a node is depends on its other operands."""


class Evaluation:
    """One side of a region under one binding: the value of any tensor in it, on demand."""

    def __init__(
        self, side: Side, nodes: Sequence[int], entering: Mapping[str, int], wide: int, products: int = 0
    ) -> None:
        """`entering` gives the first symbol of each entering tensor, `wide` the first free symbol behind them all.

        With `products`, the symbols below it have products among them, numbered from `products` on.
        """
        self.side = side
        self.products = products
        self.nodes = nodes
        self.entering = entering
        self.convs: list[ConvUse] = []
        self.given: set[str] = set()
        """Tensors that stand for symbols of their own."""
        self.rescaled = False  # whether a factor was taken from behind an operator to before it, with a rounding
        self.computed = False
        """Whether constants are computed from constants at run time, or scaled, by more than moving them."""
        self.families: dict[Shape, Family] = {}
        self._members: dict[str, tuple[Family, int]] = {}
        self._sums: dict[str, Form] = {}
        self.dtype: np.dtype[np.signedinteger] = np.dtype(np.int32 if self._allocate(wide) < 2**31 else np.int64)
        self._values: dict[str, Value] = {}
        self._failed: dict[str, str] = {}
        """Tensors that are not covered, and why: what reads them need not ask again, however long the chain."""
        self._done = 0

    def advance(self, stop: int | None = None) -> None:
        """Evaluate all nodes before `stop`, in graph order, so that no recursion runs deep.

        What is not covered is passed over: it matters only where it is read.  Raises Impossible.
        """
        side = self.side
        while self._done < len(self.nodes) and (stop is None or self.nodes[self._done] < stop):
            node = side.model.nodes[self.nodes[self._done]]
            self._done += 1
            # The first output brings the others along.
            name = next((name for name in node.output if name), "")
            if not name or name in self._values or name in self._failed or side.bound.value(name) is not None:
                continue
            with contextlib.suppress(Unsupported):
                if ending(side, node) is None:
                    self.value(name)

    def give(self, name: str, form: Form) -> None:
        """Let a tensor that is computed nonlinearly stand for symbols of its own."""
        self._values[name] = form
        self.given.add(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        """Let what failed because of this tensor be evaluated again, in graph order."""
        todo, again = [name], set()
        while todo:
            for index in self.side.readers.get(todo.pop(), ()):
                failed = [output for output in self.side.model.nodes[index].output if output in self._failed]
                for output in failed:
                    del self._failed[output]
                todo += failed
                again |= {index} if failed else set()
        if again:
            self._done = min(self._done, bisect.bisect_left(self.nodes, min(again)))

    def _allocate(self, wide: int) -> int:
        """Number the outputs of all convolutions; returns the first number not in use."""
        found: dict[Shape, list[tuple[str, int]]] = {}
        for index in self.nodes:
            node = self.side.model.nodes[index]
            matrix = is_matrix_product(self.side, node)
            if matrix or is_conv(node, self.side.functions) or is_transposed(node, self.side.functions):
                shape = self.shape(node.output[0])
                shape = (shape[0], shape[-1], *shape[1:-1]) if matrix else shape
                found.setdefault((shape[0], *shape[2:]), []).append((node.output[0], shape[1]))
        for grid, outputs in found.items():
            family = Family(grid, wide, sum(channels for _, channels in outputs))
            first = 0
            for name, channels in outputs:
                self._members[name] = (family, first)
                first += channels
            self.families[grid] = family
            wide += math.prod(grid) * family.channels
        return wide

    def shape(self, name: str) -> Shape:
        shape = self.side.bound.shape(name)
        if shape is None:
            raise Unsupported(f"the shape of '{name}' is not known")
        return shape

    def value(self, name: str) -> Value:
        """The tensor as forms, or as numbers where it is constant; raises Unsupported or Impossible."""
        if name in self._values:
            return self._values[name]
        if name in self._failed:
            raise Unsupported(self._failed[name])
        try:
            found = self._values[name] = self._find(name)
        except Unsupported as problem:
            self._failed[name] = str(problem)
            raise
        return found

    def record(self, conv: ConvUse) -> None:
        """Add a convolution; one that was evaluated before, when what it is added to was not known, is not another."""
        self.convs = [*(known for known in self.convs if known.output != conv.output), conv]

    def form(self, name: str) -> Form:
        return self.as_form(self.value(name))

    def as_form(self, value: Value) -> Form:
        return value if isinstance(value, Form) else forms.constant_form(value, self.dtype)

    def _find(self, name: str) -> Value:
        known = self.side.bound.value(name)
        if known is not None:
            self.computed |= known.dtype.kind == "f" and self.side.maker(name) is not None
            return known
        if self.side.constant(name):
            fixed = constant(self.side.model, name)
            assert fixed is not None
            return fixed
        if name in self.entering:
            return forms.symbols(self.shape(name), self.entering[name], self.dtype)
        maker = self.side.maker(name)
        if maker is None or maker not in self.nodes:
            raise Unsupported(f"'{name}' has no value in the region")
        node = self.side.model.nodes[maker]
        outputs = self._evaluate(node)
        for output, value in zip(node.output, outputs, strict=False):
            self._values[output] = value
        if name not in self._values:
            raise Unsupported(f"the output '{name}' of {node.op_type} is not covered")
        return self._values[name]

    def sum_in(self, node: onnx.NodeProto) -> Form:
        """What a FusedConv takes its activation of: its convolution, plus the residual if there is one."""
        name = node.output[0]
        if name not in self._sums:
            (total,) = self._evaluate(conv_of(node))
            added = self.form(residual(node)) if residual(node) else None
            if not isinstance(total, Form) or (added is not None and added.shape != total.shape):
                raise Unsupported(f"FusedConv '{name}' adds a residual of another shape, or to a constant")
            self._sums[name] = total if added is None else forms.add(total, added)
        return self._sums[name]

    def _evaluate(self, node: onnx.NodeProto) -> Sequence[Value]:
        if is_fused_conv(node, self.side.functions) and ending(self.side, node) is None:
            return [self.sum_in(node)]
        if not is_default(node, self.side.functions) or node.op_type not in LINEAR:
            raise Unsupported(f"{node.op_type} '{node.output[0]}' is not linear, or not covered")
        operands = [self.value(name) if name else None for name in node.input]
        if not any(isinstance(operand, Form) for operand in operands):
            self.computed |= node.op_type not in MOVES
            product = constant_product(node, operands)
            if product is not None:
                return [product]
            return self._reference(node, [operand for operand in operands if isinstance(operand, np.ndarray)])
        if node.op_type in SUMS and not self._is_real(node):
            raise Unsupported(f"{node.op_type} '{node.output[0]}' computes with integers, which wrap around and round")
        try:
            return self.made(node, operands)
        except (Unsupported, Impossible):
            raise
        except ValueError as error:  # NumPy's for shapes that do not fit
            raise Impossible(f"{node.op_type} '{node.output[0]}' cannot be computed: {reason(error)}") from error
        except Exception as error:  # an attribute missing or of another type, too little memory, …
            raise Unsupported(f"{node.op_type} '{node.output[0]}' cannot be followed: {reason(error)}") from error

    def _is_real(self, node: onnx.NodeProto) -> bool:
        kinds = (self.side.bound.types.get(name) for name in (node.output[0], node.input[0]))
        return any(kind is not None and significand_bits(kind.tensor_type.elem_type) is not None for kind in kinds)

    def _reference(self, node: onnx.NodeProto, operands: Sequence[Array]) -> list[Array]:
        names = [name for name in node.input if name]
        return run_reference(self.side, node, dict(zip(names, operands, strict=True)))

    def _move(self, node: onnx.NodeProto, operands: Sequence[Value | None]) -> list[Value]:
        """Data movement: the reference operator on position numbers (from 1; 0 is padding)."""
        moved = [i for i in range(len(operands)) if node.op_type == "Concat" or i == 0]
        parts = [self._part(operands[i]) for i in moved]
        feeds: dict[str, Array] = {}
        first = 1
        position = {}
        for i, part in zip(moved, parts, strict=True):
            count = math.prod(part.shape)
            position[i] = np.arange(first, first + count, dtype=np.int64).reshape(part.shape)
            first += count
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        for i, operand in enumerate(operands):
            if operand is None:
                continue
            name = renamed.input[i] = f"operand{i}"
            if i in position:
                feeds[name] = position[i]
                continue
            if isinstance(operand, Form):
                raise Unsupported(f"{node.op_type} '{node.output[0]}' moves data by run-time values")
            feeds[name] = operand
        if node.op_type == "Pad":
            require_zero_padding(renamed, feeds)
        source = parts[0] if len(parts) == 1 else forms.concatenate(parts)
        return [forms.take(source, np.asarray(found, np.int64)) for found in run_reference(self.side, renamed, feeds)]

    def convolve(self, node: onnx.NodeProto, data: Form, weight: Array) -> Form:
        """What a Conv node makes of an operand and a weight that are not the values of its inputs."""
        return _conv(self, node, [data, weight])

    def made(self, node: onnx.NodeProto, operands: Sequence[Value | None]) -> list[Value]:
        """What a linear node makes of operands that need not be the values of its inputs."""
        handler = _HANDLERS.get(node.op_type)
        return self._move(node, operands) if handler is None else [handler(self, node, operands)]

    def _part(self, operand: Value | None) -> Form:
        if operand is None:
            raise Unsupported("a node has no data operand")
        return operand if isinstance(operand, Form) else forms.constant_form(operand, self.dtype)


def _identity(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    (data, *_) = operands
    assert isinstance(data, Form)
    if node.op_type == "Dropout" and len(operands) > 2 and operands[2] is not None and np.any(operands[2] != 0):
        raise Unsupported("Dropout is in training mode")
    if node.op_type == "Cast":
        kind = run.side.bound.types.get(node.input[0])
        if kind is None or kind.tensor_type.elem_type != attributes(node)["to"]:
            raise Unsupported(f"Cast '{node.output[0]}' changes the precision")
    return data


def _reshape(_: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    data = operands[0]
    assert isinstance(data, Form)
    target = operands[1] if len(operands) > 1 else np.asarray(attributes(node)["shape"])
    if not isinstance(target, np.ndarray):
        raise Unsupported(f"Reshape '{node.output[0]}' goes to a shape known only at run time")
    wanted = tuple(int(size) for size in target)
    shape = reshape_target(data.shape, wanted, bool(attributes(node).get("allowzero", 0)))
    if shape is None:
        raise Impossible(f"Reshape '{node.output[0]}' cannot turn {list(data.shape)} into {list(wanted)}")
    return forms.reshape(data, shape)


def _transpose(_: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    data = operands[0]
    assert isinstance(data, Form)
    perm = attributes(node).get("perm")
    return forms.transpose(data, list(perm) if isinstance(perm, Sequence) else list(range(len(data.shape)))[::-1])


def _reduce(_: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    data, found = operands[0], attributes(node)
    if not isinstance(data, Form) or (len(operands) > 1 and isinstance(operands[1], Form)):
        raise Unsupported(f"{node.op_type} '{node.output[0]}' reduces axes known only at run time")
    given = operands[1] if len(operands) > 1 else found.get("axes")
    axes = [] if given is None else [int(axis) % len(data.shape) for axis in np.asarray(given).reshape(-1)]
    if not axes and found.get("noop_with_empty_axes", 0):
        return data
    axes = axes or list(range(len(data.shape)))
    result = forms.reduce_sum(data, axes, bool(found.get("keepdims", 1)))
    if node.op_type == "ReduceSum":
        return result
    return forms.scale(result, np.asarray(1 / math.prod(data.shape[axis] for axis in axes)))


def _global_average(_: Evaluation, __: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    data = operands[0]
    assert isinstance(data, Form)
    area = math.prod(data.shape[2:])
    return forms.scale(forms.reduce_sum(data, list(range(2, len(data.shape))), keepdims=True), np.asarray(1 / area))


def _sum(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    parts = [run._part(operand) for operand in operands]
    if node.op_type == "Sub":
        parts[1] = forms.negate(parts[1])
    total = parts[0]
    for part in parts[1:]:
        total = forms.add(total, part)
    return total


def _negate(run: Evaluation, _: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    return forms.negate(run._part(operands[0]))


def _multiply(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    a, b = operands
    if isinstance(a, Form) and isinstance(b, Form) and node.op_type == "Mul":
        return forms.product(a, b, run.products)
    if isinstance(a, Form) and isinstance(b, np.ndarray):
        return forms.scale(a, b.astype(np.float64) if node.op_type == "Mul" else 1 / b.astype(np.float64))
    if isinstance(b, Form) and isinstance(a, np.ndarray) and node.op_type == "Mul":
        return forms.scale(b, a)
    raise Unsupported(f"{node.op_type} '{node.output[0]}' combines two run-time tensors")


def _conv(run: Evaluation, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Form:
    data, weight, bias = (*operands, None, None)[:3]
    if not isinstance(data, Form) or not isinstance(weight, np.ndarray) or isinstance(bias, Form):
        raise Unsupported(f"the weight or bias of {node.op_type} '{node.output[0]}' is not constant")
    family, first = run._members[node.output[0]]
    shifted = None
    if node.op_type == "ConvTranspose":
        conv = upsampled_use(node, data, weight, family, first, run.convs)
    else:
        geometry = geometry_of(node, data, weight)
        conv = conv_use(node, data, weight, geometry, family, first, run.convs)
        shifted = offset_of(data, weight, geometry, (family.grid[0], weight.shape[0], *family.grid[1:]))
    run.record(conv)
    run.computed |= data.coef is not None and bool((np.abs(data.coef) != 1).any())
    channels = np.arange(first, first + conv.weight.shape[0], dtype=run.dtype)
    positions = np.arange(math.prod(family.grid), dtype=run.dtype).reshape(family.grid[0], 1, *family.grid[1:])
    column = (1, -1, *[1] * (len(family.grid) - 1))
    made = Form((family.first + positions * family.channels + channels.reshape(column))[..., None])
    return made if bias is None and shifted is None else _with_bias(made, shifted, bias, column)


def _with_bias(made: Form, shifted: Form | None, bias: Array | None, column: Shape) -> Form:
    if bias is None:
        return made if shifted is None else replace(shifted, index=made.index)
    offset = np.broadcast_to(np.asarray(bias, np.float64).reshape(column), made.shape)
    plain = Form(made.index, None, offset, np.abs(offset), 1)
    return plain if shifted is None else replace(forms.add(plain, shifted), index=made.index)


_HANDLERS: Mapping[str, Callable[[Evaluation, onnx.NodeProto, Sequence[Value | None]], Form]] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _identity,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "GlobalAveragePool": _global_average,
    "Sum": _sum,
    "Add": _sum,
    "Sub": _sum,
    "Neg": _negate,
    "Mul": _multiply,
    "Div": _multiply,
    "BatchNormalization": batch_normalization,
    "Resize": resize,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MatMul": matrix_product,
    "Gemm": matrix_product,
}
