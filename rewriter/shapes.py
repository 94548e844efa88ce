"""Concrete shapes of every tensor once the graph inputs have concrete shapes, without running the model.

Shapes come from ONNX's own per-operator inference, shape arithmetic (Shape, Gather, Slice, Concat ...) from ONNX's
reference operators on small integer tensors, and on a few floats where exporters take a detour through them
(`int(c / 8)`).  Nothing is unified by dim_param: exporters name equal sizes differently.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from rewriter import contrib
from rewriter.constants import Array, constant, is_constant
from rewriter.contrib_definitions import defined
from rewriter.model import Model
from rewriter.wiring import subgraphs

Shape = tuple[int, ...]
_SMALL = 4096  # elements: larger tensors are data, not shapes
_SMALL_FLOAT = 16  # Resize scales and the like; larger float tensors are weights
_TYPES = onnx.TensorProto
_FLOAT_TENSOR = onnx.helper.make_tensor_type_proto(_TYPES.FLOAT, None)  # what a tensor most likely is
_FLOAT_ARITHMETIC = frozenset(["Cast", "Div", "Mul", "Add", "Sub", "Floor", "Ceil", "Sqrt", "Neg"])
"""Operators followed on floats: IEEE 754 says what they give to the last bit, whoever computes them."""
_WINDOWED = frozenset(["Conv", "MaxPool", "AveragePool", "LpPool"])
_FLOATS = frozenset([_TYPES.FLOAT, _TYPES.DOUBLE, _TYPES.FLOAT16])
_SIGNED = frozenset([_TYPES.INT8, _TYPES.INT16, _TYPES.INT32, _TYPES.INT64])
_WHOLE = _SIGNED | {_TYPES.BOOL, _TYPES.UINT8, _TYPES.UINT16, _TYPES.UINT32, _TYPES.UINT64}


@dataclass(frozen=True)
class Bound:
    """Shapes and small values of a model's tensors under one binding of its inputs."""

    types: Mapping[str, onnx.TypeProto]
    values: Mapping[str, Array]
    problems: tuple[str, ...]
    """One clause for each node whose shapes contradict each other under this binding."""

    def shape(self, tensor: str) -> Shape | None:
        """The tensor's shape, or None where it could not be derived."""
        kind = self.types.get(tensor)
        return None if kind is None else static_shape(kind)

    def value(self, tensor: str) -> Array | None:
        """The value of a constant or of shape arithmetic, or None."""
        return self.values.get(tensor)


def static_shape(kind: onnx.TypeProto) -> Shape | None:
    """The shape of a tensor type when every dimension is a number, else None."""
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in dims):
        return None
    return tuple(int(dim.dim_value) for dim in dims)


def bind(model: Model, inputs: Mapping[str, Shape], *, for_every_input: bool = False) -> Bound:
    """Derive shapes in graph order from `inputs`, shapes by name of graph inputs or any tensor to start from."""
    pinned = dict(inputs)
    types = _starting_types(model, pinned, for_every_input)
    values: dict[str, Array] = {}
    problems: list[str] = []
    versions = {_domain(entry.domain): entry.version for entry in model.skeleton.opset_import}
    declared = {info.name: info.type for info in model.skeleton.graph.value_info} if not for_every_input else {}
    functions = {(function.domain, function.name) for function in model.skeleton.functions}
    for node in (part for whole in model.nodes for part in _plain(whole, functions, types)):
        _constants_of(model, node, types, values)
        value = _evaluate(node, types, values, versions)
        if value is not None:
            values[node.output[0]] = value
            types[node.output[0]] = _tensor_type(_dtype(value), value.shape)
            continue
        problem = _contradiction(node, types, values)
        inferred: Mapping[str, onnx.TypeProto] = {}
        if not problem:
            inferred, problem = _infer(node, types, values, versions)
        if problem:
            problems.append(problem)
        for name in node.output:
            kind = inferred.get(name)
            if name in pinned:
                elem_type = (kind or declared.get(name, _FLOAT_TENSOR)).tensor_type.elem_type
                kind = _tensor_type(elem_type, pinned[name])
            elif kind is None or (static_shape(kind) is None and name in declared):
                kind = declared.get(name, kind)
            if kind is not None:
                types[name] = kind
    return Bound(types, values, tuple(problems))


def _starting_types(model: Model, pinned: Mapping[str, Shape], for_every_input: bool) -> dict[str, onnx.TypeProto]:
    types = {name: _tensor_type(header.data_type, tuple(header.dims)) for name, header in model.headers.items()}
    if for_every_input:  # an overridable initializer is only a default: callers may give any shape that is declared
        types = {name: kind for name, kind in types.items() if name not in model.overridable}
    for info in model.skeleton.graph.input:
        if info.name in pinned:
            types[info.name] = _tensor_type(info.type.tensor_type.elem_type, pinned[info.name])
        elif info.name not in types:
            types[info.name] = _without_placeholders(info.type)
    return types


def _without_placeholders(kind: onnx.TypeProto) -> onnx.TypeProto:
    """The type with 0 and -1, which some exporters write for an unknown size, as unknown sizes."""
    known = onnx.TypeProto()
    known.CopyFrom(kind)
    if known.tensor_type.HasField("shape"):
        for dim in known.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.ClearField("dim_value")
    return known


def _domain(name: str) -> str:
    """The operator set's domain; the default one has two spellings."""
    return "" if name == "ai.onnx" else name


def _plain(
    node: onnx.NodeProto, functions: Collection[tuple[str, str]], types: Mapping[str, onnx.TypeProto]
) -> list[onnx.NodeProto]:
    """The node as ONNX's own tools know it: the default domain's usual spelling, ORT's operators as ONNX's."""
    if (node.domain, node.op_type) in functions:
        return [node]
    if contrib.is_fused_conv(node):
        return [contrib.conv_of(node)]
    if node.domain == contrib.DOMAIN:
        return defined(node, types.get) or [node]
    if node.domain != "ai.onnx":
        return [node]
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.domain = ""
    return [copy]


def _constants_of(
    model: Model, node: onnx.NodeProto, types: dict[str, onnx.TypeProto], values: dict[str, Array]
) -> None:
    """Note the values of the node's small initializers, or of the node itself when it is a Constant."""
    for name in node.output if node.op_type == "Constant" else node.input:
        if name in values or not is_constant(model, name):
            continue
        header = model.headers.get(name)
        if node.op_type == "Constant":
            header = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        elif header is None:
            continue
        if header is not None:
            types[name] = _tensor_type(header.data_type, tuple(header.dims))
        if header is not None and math.prod(header.dims) > _limit(header.data_type):
            continue
        if header is not None and header.data_location == onnx.TensorProto.EXTERNAL and not _is_read(node, header):
            continue
        value = constant(model, name)
        if value is None:
            continue
        types[name] = _tensor_type(_dtype(value), value.shape)
        if value.size <= _limit(_dtype(value)):
            values[name] = value


def _limit(elem_type: int) -> int:
    if elem_type in _WHOLE:
        return _SMALL
    return _SMALL_FLOAT if elem_type in _FLOATS else -1  # strings and the like never are about shapes


def _is_read(node: onnx.NodeProto, header: onnx.TensorProto) -> bool:
    """Whether shapes can depend on the values: data files are opened for those only."""
    return header.data_type in _WHOLE or node.op_type in ("Resize", "Upsample")


def _evaluate(
    node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], values: Mapping[str, Array], versions: Mapping[str, int]
) -> Array | None:
    """The node's value when it is shape arithmetic on known values, else None."""
    if node.domain or len(node.output) != 1 or not node.input:
        return None
    if node.output[0] in values:
        return values[node.output[0]]
    if node.op_type in ("Shape", "Size"):
        shape = static_shape(types[node.input[0]]) if node.input[0] in types else None
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.asarray(math.prod(shape), np.int64)
        limits = {entry.name: entry.i for entry in node.attribute}
        return np.asarray(shape[limits.get("start", 0) : limits.get("end", len(shape))], np.int64)
    operands = [values.get(name) for name in node.input if name]
    kinds = _kinds(node)
    if any(value is None or value.dtype.kind not in kinds for value in operands):
        return None
    known = [value for value in operands if value is not None]
    if sum(value.size for value in known) > _SMALL or any(True for _ in subgraphs(node)) or _is_large(node, known):
        return None
    key = node.SerializeToString(deterministic=True)
    packed = tuple((value.dtype.str, value.shape, value.tobytes()) for value in known)
    return _reference(key, packed, versions.get("", 1))


def _kinds(node: onnx.NodeProto) -> str:
    """The kinds of numbers that are shape arithmetic for the operator."""
    return "iubf" if node.op_type in _FLOAT_ARITHMETIC else "iub"


def _is_large(node: onnx.NodeProto, operands: Sequence[Array]) -> bool:
    """Whether the result would be data, not a shape, for the operators whose results outgrow their operands."""
    if node.op_type in _FLOAT_ARITHMETIC:
        return False
    numbers = [[int(number) for number in value.reshape(-1).tolist()] for value in operands]
    match node.op_type:
        case "ConstantOfShape":
            return math.prod(numbers[0]) > _SMALL
        case "Expand":
            return math.prod(numbers[-1]) * len(numbers[0]) > _SMALL
        case "Tile":
            return math.prod(numbers[-1]) * len(numbers[0]) > _SMALL
        case "Range":
            start, limit, step = (values[0] for values in numbers)
            return step == 0 or abs(limit - start) // abs(step) > _SMALL
    return False


@lru_cache(maxsize=4096)
def _reference(node: bytes, operands: tuple[tuple[str, Shape, bytes], ...], version: int) -> Array | None:
    proto = onnx.NodeProto.FromString(node)
    names = [name for name in proto.input if name]
    feeds = {
        name: np.frombuffer(data, dtype).reshape(shape)
        for name, (dtype, shape, data) in zip(names, operands, strict=True)
    }
    graph = onnx.helper.make_graph(
        [proto],
        "shape arithmetic",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(proto.output[0])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        with np.errstate(all="raise", under="ignore"):  # a NaN, say, would cast to any integer
            (result,) = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # noqa: BLE001 - whatever stops the reference operator only means "value not known"
        return None
    if not isinstance(result, np.ndarray) or result.dtype.kind not in _kinds(proto):
        return None
    return result if result.size <= (_SMALL_FLOAT if result.dtype.kind == "f" else _SMALL) else None


def _contradiction(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], values: Mapping[str, Array]) -> str:
    """A Reshape to another number of elements: ONNX's inference lets it pass, running the model would not."""
    if node.op_type != "Reshape" or len(node.input) < 2:
        return ""
    kind, target = types.get(node.input[0]), values.get(node.input[1])
    shape = static_shape(kind) if kind is not None else None
    if shape is None or target is None:
        return ""
    allow_zero = any(entry.name == "allowzero" and entry.i for entry in node.attribute)
    if reshape_target(shape, tuple(int(size) for size in target), allow_zero) is None:
        return f"Reshape '{node.output[0]}' cannot turn {list(shape)} into {target.tolist()}"
    return ""


def reshape_target(shape: Shape, target: Shape, allow_zero: bool = False) -> Shape | None:
    """The shape a Reshape gives, -1 and 0 resolved; None when it would fail."""
    sizes = list(target)
    for axis, size in enumerate(sizes):
        if size == 0 and not allow_zero:
            if axis >= len(shape):
                return None
            sizes[axis] = shape[axis]
    if sizes.count(-1) > 1 or any(size < -1 for size in sizes):
        return None
    total, known = math.prod(shape), math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if known == 0 or total % known:
            return None
        sizes[sizes.index(-1)] = total // known
    return tuple(sizes) if math.prod(sizes) == total else None


def _infer(
    node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], values: Mapping[str, Array], versions: Mapping[str, int]
) -> tuple[Mapping[str, onnx.TypeProto], str]:
    """The types of the node's outputs, and one clause when its operands' shapes do not go together."""
    known = {name: types[name] for name in node.input if name in types}
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
        data = {name: numpy_helper.from_array(values[name], name) for name in node.input if name in values}
        imports = [onnx.helper.make_opsetid(name, version) for name, version in versions.items()]
        found: Mapping[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            schema, node, known, data, opset_imports=imports
        )
    except onnx.shape_inference.InferenceError:
        shapes = [static_shape(known[name]) if name in known else None for name in node.input if name]
        if None in shapes or any(True for _ in subgraphs(node)):
            return {}, ""
        taken = " and ".join(str(list(shape or ())) for shape in shapes)
        return {}, f"{node.op_type} '{node.output[0]}' cannot take {taken}"
    except Exception:  # noqa: BLE001 - unknown operator or failed inference: the shape is simply not known
        return {}, ""
    if node.op_type in _WINDOWED and any(_is_empty(kind) for kind in found.values()):
        whole = static_shape(known[node.input[0]]) or ()
        return found, f"{node.op_type} '{node.output[0]}' has nothing left of {list(whole)}"
    return found, ""


def _is_empty(kind: onnx.TypeProto) -> bool:
    return any(dim.HasField("dim_value") and dim.dim_value <= 0 for dim in kind.tensor_type.shape.dim)


def _dtype(value: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def _tensor_type(elem_type: int, shape: tuple[int, ...]) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(elem_type, shape)
