"""A region of one of the models as a model of its own, its constants resolved to plain initializers.

Resolving them (Identity, Cast, Constant, ConstantOfShape) lets L2 re-weight both sides by value, however spelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from rewriter.constants import Array, constant
from rewriter.equivalence.fused import functions, is_conv, is_transposed, standing_for
from rewriter.equivalence.precision import significand_bits
from rewriter.equivalence.regions import Region, Side
from rewriter.equivalence.repeats import interpolates
from rewriter.region import extract
from rewriter.session import Runtime, open_session, run
from rewriter.shapes import Shape
from rewriter.wiring import used_names

_RESIZES = frozenset({"Resize", "Upsample"})
_INTERPOLATES = "Resize that interpolates"


@dataclass(frozen=True, eq=False)
class Cut:
    """The model of a region's side; `weights` are its floating-point constants by name, `fixed` all others."""

    side: str
    proto: onnx.ModelProto
    """Nodes, inputs and outputs, without initializers."""
    weights: Mapping[str, Array]
    fixed: Mapping[str, Array]
    operators: frozenset[str]
    """ONNX's operators that its nodes come down to (see `fused`); those of other domains with the domain."""

    @cached_property
    def offsets(self) -> frozenset[str]:
        """Weights that are added: biases of convolutions, operands of Add, Sub and Sum."""
        found: set[str] = set()
        for node in self.proto.graph.node:
            if is_conv(node) or is_transposed(node):
                found.update(node.input[2:])
            elif node.op_type in ("Add", "Sub", "Sum"):
                found.update(node.input)
        return frozenset(found & self.weights.keys())

    def with_weights(self, weights: Mapping[str, Array]) -> onnx.ModelProto:
        """The model with these weights as constants."""
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        values = {**self.fixed, **weights}
        model.graph.initializer.extend(numpy_helper.from_array(_plain(v), name) for name, v in values.items())
        return model

    def with_fed_weights(self) -> onnx.ModelProto:
        """The model with its weights as inputs, so that one session serves any weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        model.graph.initializer.extend(numpy_helper.from_array(_plain(v), name) for name, v in self.fixed.items())
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, _code(value), value.shape) for name, value in self.weights.items()
        )
        return model


def cut(
    side: Side,
    nodes: Sequence[int],
    region: Region,
    types: Mapping[str, onnx.TypeProto],
    bindings: Sequence[Mapping[str, Shape]],
) -> Cut:
    """Cut one side of a region out; dimensions in which the bindings' entering shapes differ stay free.

    `types` are those of the original's entering tensors, for both sides: behind an operator that ONNX does not know,
    the rewritten model has none.
    """
    kinds = {}
    for name in region.inputs:
        shape, *sizes = (shapes[name] for shapes in bindings)
        dims: list[int | str] = [
            size if all(len(s) == len(shape) and s[axis] == size for s in sizes) else f"{name}.{axis}"
            for axis, size in enumerate(shape)
        ]
        kinds[name] = onnx.helper.make_tensor_type_proto(types[name].tensor_type.elem_type, dims)
    proto = extract(side.model, nodes, kinds, region.outputs)
    kept = [node for node in proto.graph.node if not all(side.constant(name) for name in node.output if name)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    del proto.graph.initializer[:]
    read = used_names(kept) | {name for name in region.outputs if side.constant(name)}
    values: dict[str, Array] = {}
    for name in sorted(read):
        if name not in kinds and side.constant(name):
            value = constant(side.model, name)
            assert value is not None
            values[name] = value
    factors = {name for node in kept if node.op_type in _RESIZES for name in node.input[1:]}  # never weights
    weights = {name: value for name, value in values.items() if significand_bits(_code(value)) and name not in factors}
    fixed = {name: value for name, value in values.items() if name not in weights}
    used = used_names(kept) | set(region.outputs)
    inputs = [value for value in proto.graph.input if value.name in used]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    own = functions(side.model)
    operators = frozenset(
        name for node in kept for name in ([_INTERPOLATES] if interpolates(node) else standing_for(node, own))
    )
    return Cut(side.name, proto, weights, fixed, operators)


@dataclass(frozen=True, eq=False)
class Runner:
    """Runs a cut in ONNX Runtime: unoptimized with any weights, or with fixed weights as they are deployed."""

    cut: Cut
    runtime: Runtime

    @cached_property
    def _fed(self) -> object:
        return open_session(self.cut.with_fed_weights(), self.runtime.at("disable"))

    def plain(self, feeds: Mapping[str, Array], weights: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs at ORT_DISABLE_ALL; raises SessionFailed."""
        return own(run(self._fed, self._feeds(feeds) | {name: _plain(value) for name, value in weights.items()}))

    def deployed(self, feeds: Sequence[Mapping[str, Array]], weights: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Outputs for each of the feeds at the deployed level; raises SessionFailed."""
        session = open_session(self.cut.with_weights(weights), self.runtime)
        return [own(run(session, self._feeds(entry))) for entry in feeds]

    def release(self) -> None:
        """Close the session that `plain` opened, with the memory it keeps for further runs."""
        vars(self).pop("_fed", None)

    def _feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {value.name: feeds[value.name] for value in self.cut.proto.graph.input}


def own(values: Mapping[str, Array]) -> dict[str, Array]:
    """Copies: ONNX Runtime's own arrays keep all the memory of their session alive."""
    return {name: value.copy() for name, value in values.items()}


def _plain(value: Array) -> Array:
    return np.ascontiguousarray(value).reshape(value.shape)


def _code(value: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
