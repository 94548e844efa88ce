"""Concrete sizes for the unknown dimensions of a model's inputs.

What the user gives wins; then sizes that constants in the graph imply (exporters bake 14 or 56 into shape arithmetic
while calling the input dynamic); then batch sizes from the caller and two primes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import onnx

from rewriter.constants import constant, is_constant
from rewriter.errors import BadInput
from rewriter.model import Model
from rewriter.shapes import Bound, Shape, bind

PRIMES = (67, 71, 73, 79)
"""Sizes for axes nothing is known about: primes, so that no two mix up, and large enough for five halvings."""
EVEN_SIZES = (94, 106, 118, 122)
"""Other sizes for the same axes, to see what depends on the size: larger, and even (padding differs by parity)."""
_STEP = 32
"""What other sizes are larger by, where the model does not take primes: it keeps five halvings exact."""
SMALL_PRIMES, SMALL_EVENS = (17, 19, 23, 29), (22, 26, 34, 38)
"""The same for volumes, whose three free axes multiply."""
_MULTIPLES = (1, 2, 4, 8, 16, 32)
_USUAL = (224, 256, 112, 128, 299, 320, 384, 512, 640)
_SHAPE_OPERATORS = frozenset({"Reshape", "Concat", "Slice", "Expand", "Resize", "Tile"})
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})
_TRIALS = 48
_Key = tuple[tuple[tuple[str, Shape], ...], tuple[int, ...], tuple[tuple[int, ...], ...], bool]
_FOUND: WeakKeyDictionary[Model, dict[_Key, tuple[Binding, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Binding:
    """One choice of input shapes: `shapes` by input, `chosen` those with axes nobody gave, `bound` every tensor's."""

    shapes: Mapping[str, Shape]
    chosen: Mapping[str, Shape]
    bound: Bound


def find_bindings(
    model: Model,
    given: Mapping[str, Shape] | None = None,
    batches: Sequence[int] = (1, 3),
    sizes: Sequence[Sequence[int]] = (PRIMES, EVEN_SIZES),
    *,
    vary_given: bool = False,
) -> tuple[Binding, ...]:
    """Bindings of the model's inputs: one where every dimension is fixed, else two that differ in every free dimension.

    The second has the other batch size and, where the model allows it, other and larger sizes: a constant that bites at
    one size only (a crop to 100, say) then shows.  `sizes` are what free axes get where nothing in the model implies
    one.  With `vary_given`, the second differs from `given` too, in the dimensions that the model leaves free.

    Raises BadInput when `given` names no input or contradicts a declared dimension.
    """
    shapes = dict(given or {})
    _check_given(model, shapes)
    key = (tuple(sorted(shapes.items())), tuple(batches), tuple(map(tuple, sizes)), vary_given)
    known = _FOUND.setdefault(model, {})
    if key not in known:
        known[key] = _find(model, shapes, batches, sizes, vary_given)
    return known[key]


def _find(
    model: Model, given: Mapping[str, Shape], batches: Sequence[int], sizes: Sequence[Sequence[int]], vary_given: bool
) -> tuple[Binding, ...]:
    first, used = _best(model, given, batches[0], _choices(model, sizes[0]))
    if len(batches) == 1:
        return (first,)
    for shapes in _variants(model, given, used, batches[1], sizes, vary_given):
        if shapes == dict(first.shapes):
            continue
        second = Binding(shapes, {name: shapes[name] for name in first.chosen}, bind(model, shapes))
        if len(second.bound.problems) <= len(first.bound.problems):
            return (first, second)
    return (first,)


def _variants(
    model: Model,
    given: Mapping[str, Shape],
    used: Sequence[int],
    batch: int,
    sizes: Sequence[Sequence[int]],
    vary_given: bool,
) -> Iterator[dict[str, Shape]]:
    """Shapes for a second binding, those that differ most from the first one's first."""

    def shapes(batch: int, some: Sequence[int], step: int) -> dict[str, Shape]:
        return _shapes(model, given, batch, some)[0] | (_varied(model, given, step) if vary_given else {})

    if vary_given and given:  # another parity where the model takes it: on it depends what SAME and ceil_mode do
        yield shapes(batch, [size + _STEP for size in used], _STEP + 1)
    if tuple(used) in (tuple(sizes[0]), SMALL_PRIMES):
        yield shapes(batch, sizes[1] if tuple(used) == tuple(sizes[0]) else SMALL_EVENS, _STEP)
    yield shapes(batch, [size + _STEP for size in used], _STEP)
    for other in (batch, 1, 2, 4):  # a constant may fix the batch, or broadcast against some batches only
        yield shapes(other, used, 0)
    yield _shapes(model, given, batch, used)[0]


def _varied(model: Model, given: Mapping[str, Shape], step: int) -> dict[str, Shape]:
    """The given shapes with one more in the batch and `step` more elsewhere, where the model leaves them free."""
    varied: dict[str, Shape] = {}
    for value in model.inputs:
        dims = value.type.tensor_type.shape.dim
        if value.name not in given or len(dims) != len(given[value.name]):
            continue
        channels = _channels_read(model, value.name)
        varied[value.name] = tuple(
            size if known_size(dim) is not None or (axis == 1 and channels) else size + (step if axis else 1)
            for axis, (dim, size) in enumerate(zip(dims, given[value.name], strict=True))
        )
    return varied


def _check_given(model: Model, given: Mapping[str, Shape]) -> None:
    inputs = {value.name: value for value in model.inputs}
    for name, shape in given.items():
        if name not in inputs:
            names = ", ".join(f"'{known}'" for known in inputs) or "none"
            raise BadInput(f"--input-shape names '{name}', which is no input of the model; its inputs are {names}.")
        declared = inputs[name].type.tensor_type
        if not declared.HasField("shape"):
            continue
        dims = declared.shape.dim
        fits = len(dims) == len(shape) and all(
            known_size(dim) in (None, size) for dim, size in zip(dims, shape, strict=True)
        )
        if not fits or any(size < 1 for size in shape):
            raise BadInput(f"--input-shape {name}:{_text(shape)} does not fit the declared {describe(inputs[name])}.")


def known_size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """The dimension as a number; None for a name, for nothing, and for the 0 or -1 some exporters write for unknown."""
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None


def describe(value: onnx.ValueInfoProto) -> str:
    """The declared shape as text, unknown dimensions by name or `?`."""
    if not value.type.tensor_type.HasField("shape"):
        return "unknown rank"
    dims = value.type.tensor_type.shape.dim
    return "[" + ", ".join(str(known_size(d) or d.dim_param or "?") for d in dims) + "]"


def _text(shape: Shape) -> str:
    return ",".join(map(str, shape))


def _best(
    model: Model, given: Mapping[str, Shape], batch: int, choices: Iterable[Sequence[int]]
) -> tuple[Binding, Sequence[int]]:
    """The first choice of sizes without a contradiction, else the one with the fewest; with the sizes."""
    best: tuple[Binding, Sequence[int]] | None = None
    for sizes in choices:
        shapes, chosen = _shapes(model, given, batch, sizes)
        trial = Binding(shapes, chosen, bind(model, shapes))
        if best is None or len(trial.bound.problems) < len(best[0].bound.problems):
            best = (trial, sizes)
        if not trial.bound.problems or not chosen:
            break
    assert best is not None
    return best


def _choices(model: Model, primes: Sequence[int]) -> Iterable[Sequence[int]]:
    if any(_is_open_volume(value) for value in model.inputs):
        yield SMALL_PRIMES
    yield primes
    for size in _implied_sizes(model):
        yield (size,) * len(PRIMES)


def _is_open_volume(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) == 5 and sum(known_size(dim) is None for dim in dims[1:]) >= 3


def _implied_sizes(model: Model) -> list[int]:
    """Sizes that constants suggest, each with its doublings, usual image sizes first; then the other usual ones."""
    seen: set[int] = set()
    for node in model.nodes:
        if node.op_type in _BROADCASTING:  # a table of positions, say
            tables = [model.headers[name].dims for name in node.input if name in model.headers]
            seen.update(size for dims in tables if len(dims) > 2 for size in dims if 1 < size <= 1024)
        if node.op_type not in _SHAPE_OPERATORS:
            continue
        for name in node.input[1:] if node.op_type != "Concat" else node.input:
            header = model.headers.get(name)
            if not is_constant(model, name) or (header is not None and sum(header.dims) > 16):
                continue
            value = constant(model, name)
            if value is not None and value.dtype.kind == "i" and value.size <= 16:
                seen.update(size for size in value.reshape(-1).tolist() if 1 < size <= 1024)
    implied = {size * factor for size in seen for factor in _MULTIPLES if 4 <= size * factor <= 1024}
    usual = [size for size in _USUAL if size in implied]
    suggested = usual + sorted(implied - set(usual))
    return suggested[: _TRIALS - len(_USUAL)] + [size for size in _USUAL if size not in implied]


def _shapes(
    model: Model, given: Mapping[str, Shape], batch: int, sizes: Sequence[int]
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    shapes: dict[str, Shape] = {}
    chosen: dict[str, Shape] = {}
    by_name: dict[str, int] = {}
    supply = iter(sizes)
    for value in model.inputs:
        if value.name in given:
            shapes[value.name] = given[value.name]
            continue
        if not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        channels = _channels_read(model, value.name)
        shape = []
        for axis, dim in enumerate(dims):
            size = known_size(dim)
            if size is not None:
                shape.append(size)
            elif axis == 0 and len(dims) > 1:
                by_name.setdefault(dim.dim_param, batch)
                shape.append(batch)
            elif axis == 1 and channels:
                shape.append(channels)
            else:
                named = by_name.get(dim.dim_param) if dim.dim_param else None
                picked = named or next(supply, PRIMES[-1])
                by_name.setdefault(dim.dim_param, picked)
                shape.append(picked)
        shapes[value.name] = tuple(shape)
        if any(known_size(dim) is None for dim in dims):
            chosen[value.name] = tuple(shape)
    return shapes, chosen


def _channels_read(model: Model, tensor: str) -> int | None:
    """Input channels of a Conv that reads the tensor directly."""
    for index in model.wiring.readers(tensor):
        node = model.nodes[index]
        if node.op_type == "Conv" and node.input[0] == tensor and node.input[1] in model.headers:
            group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            dims = model.headers[node.input[1]].dims
            return int(dims[1] * group) if len(dims) > 2 else None
    return None
