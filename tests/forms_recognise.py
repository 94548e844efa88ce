"""Whether a model is in a form: by its operators, groups and weights, with no help from the passes.

Each `is_...` gives "" or why not, in a few words.  They are stricter than what a form's definition needs: a model of
one form is of no other, but where tests/test_forms.py says so.  Here are the forms that differ in groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.emit import Array

_BOOKKEEPING = frozenset({"Transpose", "Gather", "Reshape"})
_EPS = 2.0**-21
"""What rounding float32 weights leaves of a singular value that is 0, as a part of the largest."""


@dataclass(frozen=True)
class Conv:
    """A convolution: weight `[M, C/G, *K]`, of a transposed one `[C, M/G, *K]`."""

    node: NodeProto
    weight: Array
    group: int

    @property
    def transposed(self) -> bool:
        return bool(self.node.op_type == "ConvTranspose")

    @property
    def c(self) -> int:
        return int(self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.group)

    @property
    def m(self) -> int:
        return int(self.weight.shape[1] * self.group if self.transposed else self.weight.shape[0])

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def reads(self) -> Array:
        """`[G, ...]`: within each group, which first channel axis meets which second with a tap that is not zero."""
        taps = np.abs(self.weight.astype(np.float64)).reshape(*self.weight.shape[:2], -1).max(axis=2)
        blocks: Array = taps.reshape(self.group, -1, self.weight.shape[1]) > 0
        return blocks

    @property
    def has_zero_blocks(self) -> bool:
        return not self.reads.all()


@dataclass(frozen=True)
class Form:
    """A model, as the recognisers see it."""

    model: ModelProto
    head: str = ""
    """The output of a convolution behind that is not looked at: it only takes an order of channels in."""

    @cached_property
    def kinds(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}

    @cached_property
    def makers(self) -> dict[str, NodeProto]:
        return {name: node for node in self.model.graph.node for name in node.output}

    @cached_property
    def constants(self) -> dict[str, Array]:
        """Initializers, and what Constant, ConstantOfShape, Identity and Cast make of them."""
        known: dict[str, Array] = {
            str(tensor.name): np.asarray(numpy_helper.to_array(tensor)) for tensor in self.model.graph.initializer
        }
        for node in self.model.graph.node:
            if node.op_type in ("Constant", "ConstantOfShape", "Identity", "Cast") and set(node.input) <= known.keys():
                operands = {name: known[name] for name in node.input}
                (value,) = ReferenceEvaluator(node).run(None, operands)
                known[str(node.output[0])] = np.asarray(value)
        return known

    @cached_property
    def convs(self) -> list[Conv]:
        """Of every domain and kind, in the order of the graph; the head left out."""
        found = []
        for node in self.model.graph.node:
            if node.op_type in ("Conv", "ConvTranspose", "FusedConv") and node.output[0] != self.head:
                group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
                found.append(Conv(node, self.constants[node.input[1]], group))
        return found

    def through(self, tensor: str, kinds: frozenset[str] = _BOOKKEEPING) -> str:
        """Back from a tensor through nodes of those kinds."""
        while (node := self.makers.get(tensor)) is not None and node.op_type in kinds:
            tensor = node.input[0]
        return tensor

    def data_joins(self) -> list[NodeProto]:
        """Concats on channels: those of convolutions' outputs, not those of shapes."""
        outputs = {conv.node.output[0] for conv in self.convs}
        return [node for node in self.model.graph.node if node.op_type == "Concat" and set(node.input) & outputs]


Recogniser = Callable[[Form], str]


def recognised(model: ModelProto, recogniser: Recogniser, head: str = "") -> str:
    """Why the model is not in the form, or ""; `head` as in Form."""
    form = Form(model, head)
    return recogniser(form) if form.convs else "it has no convolution"


def first_of(*checks: tuple[bool, str]) -> str:
    return next((why for good, why in checks if not good), "")


def _no_sums(form: Form) -> tuple[bool, str]:
    return not form.kinds & {"ReduceSum", "ReduceMean"}, "it sums"


def together(form: Form) -> tuple[bool, str]:
    return not form.data_joins() and "Split" not in form.kinds, "its convolutions lie side by side"


def every(form: Form, good: Callable[[Conv], object], why: str) -> tuple[bool, str]:
    return all(good(conv) for conv in form.convs), why


def direction(form: Form, *, transposed: bool = False) -> tuple[bool, str]:
    return all(c.transposed == transposed for c in form.convs), "its convolutions are of the other direction"


def is_grouped(form: Form) -> str:
    return first_of(
        direction(form),
        _no_sums(form),
        together(form),
        every(form, lambda c: 1 < c.group < c.c, "G is 1 or C"),
        every(form, lambda c: not c.has_zero_blocks, "there are zero blocks in its groups"),
    )


def is_regrouped(form: Form) -> str:
    return first_of(
        direction(form),
        _no_sums(form),
        together(form),
        every(form, lambda c: 1 < c.group < c.c, "G is 1 or C"),
        every(form, lambda c: c.has_zero_blocks, "there are no zeros in its groups"),
    )


def is_depthwise_sum(form: Form) -> str:
    """Depthwise, and behind each through bookkeeping a reduction."""
    sums = [node for node in form.model.graph.node if node.op_type in ("ReduceSum", "ReduceMean")]
    wide = {form.through(node.input[0], _BOOKKEEPING | {"Add"}) for node in sums}
    return first_of(
        direction(form),
        every(form, lambda c: c.group == c.c > 1, "a convolution is not depthwise"),
        (wide == {conv.node.output[0] for conv in form.convs}, "what is summed is not just the convolutions"),
    )


def is_split_concat(form: Form) -> str:
    return side_by_side(form, transposed=False)


def is_mixed_kernels(form: Form) -> str:
    return side_by_side(form, transposed=False, mixed=True)


def side_by_side(form: Form, *, transposed: bool, mixed: bool = False) -> str:
    """Convolutions of one group, each of some channels of one tensor, and joins that join them all."""
    joins = form.data_joins()
    joined = [name for node in joins for name in node.input]
    parts = [form.makers.get(conv.node.input[0]) for conv in form.convs]
    kernels = {conv.kernel for conv in form.convs}
    return first_of(
        direction(form, transposed=transposed),
        (bool(joins), "nothing joins its convolutions"),
        (len(form.convs) > 1, "it has one convolution"),
        every(form, lambda c: c.group == 1, "a convolution has groups"),
        (sorted(joined) == sorted(conv.node.output[0] for conv in form.convs), "what is joined is something else"),
        (all(p is not None and p.op_type in ("Split", "Slice", "Gather") for p in parts), "a branch reads all of x"),
        ((len(kernels) > 1) == mixed, "its kernels are of one size" if mixed else "its kernels differ in size"),
    )


def is_block_dense(form: Form) -> str:
    return first_of(direction(form), *_dense(form), every(form, lambda c: c.has_zero_blocks, "it has no zero blocks"))


def is_dense(form: Form) -> str:
    return first_of(
        direction(form),
        *_dense(form),
        every(form, lambda c: not c.has_zero_blocks, "it has zero blocks"),
        every(form, lambda c: not any(ranks_save(c)), "its weights have low rank"),
    )


def _dense(form: Form) -> list[tuple[bool, str]]:
    joins = form.data_joins()
    return [
        _no_sums(form),
        (not joins, "its convolutions lie side by side"),
        _one_after_another(form),
        every(form, lambda c: c.group == 1 < c.c, "a convolution has groups, or one input channel"),
    ]


def _one_after_another(form: Form) -> tuple[bool, str]:
    outputs = {conv.node.output[0] for conv in form.convs}
    return not any(conv.node.input[0] in outputs for conv in form.convs), "a convolution reads another"


def is_parallel(form: Form) -> str:
    joins = form.data_joins()
    return first_of(
        direction(form),
        (len(joins) == 1 and len(form.convs) > 1, "it is not several convolutions and a Concat"),
        ({conv.node.input[0] for conv in form.convs} == {"x"}, "they read different tensors"),
        every(form, lambda c: c.group == 1 < c.c, "a convolution has groups, or one input channel"),
    )


def is_depthwise(form: Form) -> str:
    return first_of(
        direction(form),
        _no_sums(form),
        together(form),
        every(form, lambda c: 1 < c.group == c.c < c.m, "it is not depthwise with a multiplier"),
    )


def is_multiplier_parts(form: Form) -> str:
    joins = form.data_joins()
    return first_of(
        direction(form),
        (len(joins) == 1 and len(form.convs) > 1, "it is not several convolutions and a Concat"),
        every(form, lambda c: c.group == c.c == c.m > 1, "a part is not depthwise with multiplier 1"),
        (len({conv.node.input[0] for conv in form.convs}) == 1, "the parts read different tensors"),
    )


def ranks_save(conv: Conv) -> tuple[bool, bool, bool]:
    """Whether a dense convolution has rank enough below full per input, per output and in space (DESIGN section 6)."""
    m, c, *kernel = conv.weight.shape
    flat = conv.weight.astype(np.float64).reshape(m, c, -1)
    k = flat.shape[2]
    inputs = max(_rank(flat[:, channel]) for channel in range(c))
    outputs = max(_rank(flat[row]) for row in range(m))
    space = False
    if len(kernel) == 2 and min(kernel) > 1:
        for near, far in ((2, 3), (3, 2)):
            rows, columns = c * conv.weight.shape[near], m * conv.weight.shape[far]
            tall = conv.weight.astype(np.float64).transpose(1, near, 0, far).reshape(rows, columns)
            space = space or _rank(tall) * (rows + columns) < rows * columns
    return inputs * (k + m) < k * m, outputs * (k + c) < k * c, space


def _rank(matrix: Array) -> int:
    values = np.linalg.svd(matrix, compute_uv=False)
    return max(1, int((values > _EPS * values[0] * max(matrix.shape)).sum()))
