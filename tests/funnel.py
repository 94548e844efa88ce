"""The funnel that every rewrite in the tests goes through: `check` asserts all that a rewrite must keep.

Results equal to what its declared safety allows (bit for bit on integers where weights only move; against float64 where
they are rounded), a valid model, the same interface, nothing else touched, nothing left behind, the same bytes twice,
the input as it was, nothing more to do.  `declines` is its counterpart.  tests/test_funnel.py feeds it wrong rewrites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from models.emit import Array
from reference_operators import OPERATORS
from rewriter.base import Pass
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.propose import Applied, Step, sweep
from rewriter.registry import pass_named
from rewriter.rule import Attempt, Rewrite, Safety, Settings
from twins import feeds, float64_twin, integer_twin, text

Source = ModelProto | bytes
Sizes = Mapping[str, tuple[int, ...]]

LEVELS = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
_ORT_HAS_NO_CONV = (np.dtype(np.float64),)


@dataclass(frozen=True)
class Passed:
    """What came through the funnel."""

    before: ModelProto
    after: ModelProto
    rewrites: tuple[Rewrite, ...]
    attempts: tuple[Attempt, ...]

    @cached_property
    def text(self) -> str:
        return text(self.after)

    @property
    def safeties(self) -> set[Safety]:
        return {made.safety for made in self.rewrites}

    def initializer(self, name: str) -> Array:
        """The value of an initializer of the result whose name ends so."""
        (found,) = [tensor for tensor in self.after.graph.initializer if tensor.name.endswith(name)]
        return np.asarray(onnx.numpy_helper.to_array(found))


def check(
    source: Source,
    rule: Pass | str,
    settings: Settings | None = None,
    *,
    becomes: str | None = None,
    safety: Safety | None = None,
    sizes: Sequence[Sizes] = (),
    given: Sizes | None = None,
    again: bool = False,
    compute: bool = True,
    integers: bool = True,
) -> Passed:
    """Apply a pass wherever it matches and assert everything about the result.

    `becomes` is the result as `text`; `sizes` are input shapes to run at (needed where dimensions are free); `given`
    are shapes handed to the pass; `again` says that the pass may apply again to its own result.  `compute=False` leaves
    the running out (types that nothing here can run), `integers=False` the bitwise part (values that grow past 2^24).
    """
    rule = pass_named(rule) if isinstance(rule, str) else rule
    original = _bytes(source)
    step = Step(rule, settings or {})
    recorder = _Recorder(rule)
    after, applied, attempts = sweep(Model.load(source), Step(recorder, step.settings), given or {})
    assert applied, f"{rule.name} does not apply: {[attempt.reason for attempt in attempts]}"
    before_proto, after_proto = ModelProto.FromString(original), after.to_proto()

    assert _bytes(source) == original, "the pass mutated its input"
    twice, _, _ = sweep(Model.load(original), step, given or {})
    assert twice.to_bytes() == after.to_bytes(), "the same input gives other bytes the second time"
    imports = dict(entry for made in applied for entry in made.rewrite.imports)
    check_graph(before_proto, after_proto, recorder.removed(applied), imports)
    if not again:
        _, more, _ = sweep(after, step, given or {})
        assert not more, f"{rule.name} applies again to its own result: {[made.rewrite.summary for made in more]}"
    if becomes is not None:
        assert text(after_proto) == becomes, f"became {text(after_proto)}, not {becomes}"
    found = {made.rewrite.safety for made in applied}
    if safety is not None:
        assert found == {safety}, f"declared {found}, not {safety}"
    if compute:
        _check_values(before_proto, after_proto, found, sizes or [{}])
    if compute and integers and found <= {Safety.EXACT, Safety.FINITE}:
        _check_bits(integer_twin(before_proto), step, given or {}, sizes or [{}])
    return Passed(before_proto, after_proto, tuple(made.rewrite for made in applied), tuple(attempts))


def declines(source: Source, rule: Pass | str, phrase: str, settings: Settings | None = None) -> list[Attempt]:
    """Assert that a pass applies nowhere, leaves the bytes as they are, and says why in a sentence with `phrase`."""
    rule = pass_named(rule) if isinstance(rule, str) else rule
    original = _bytes(source)
    after, applied, attempts = sweep(Model.load(source), Step(rule, settings or {}), {})
    assert not applied, f"{rule.name} applies: {[made.rewrite.summary for made in applied]}"
    assert after.to_bytes() == original
    assert _bytes(source) == original, "the pass mutated its input"
    assert attempts, "nothing was considered, so nothing says why not"
    for attempt in attempts:
        reason = attempt.reason
        assert attempt.outcome == "declined"
        assert reason.endswith("."), f"not a sentence: {reason!r}"
        assert not reason[0].islower(), f"not a sentence: {reason!r}"
        assert "\n" not in reason
    reasons = [attempt.reason for attempt in attempts]
    assert any(phrase in reason for reason in reasons), f"no reason says {phrase!r}: {reasons}"
    return attempts


def check_graph(
    before: ModelProto, after: ModelProto, removed: set[bytes], imports: Mapping[str, int] | None = None
) -> None:
    """Assert that `after` is valid and differs from `before` in nodes and weights alone, where `removed` nodes were.

    Of the operator sets in `imports`, by domain, those that `before` lacks are in `after`, behind the others.
    """
    onnx.checker.check_model(after, full_check=True)
    _check_names(after)
    assert _interface(after) == _interface(before, imports or {}), "the interface changed"
    _check_untouched(before, after, removed)
    check_leftovers(before, after)


def run(model: ModelProto, inputs: Mapping[str, Array], level: str) -> dict[str, Array]:
    """All outputs by name; ONNX's own evaluator stands in where ONNX Runtime has no convolution of that type."""
    names = [output.name for output in model.graph.output]
    if any(array.dtype in _ORT_HAS_NO_CONV for array in inputs.values()):
        evaluator = ReferenceEvaluator(model, new_ops=list(OPERATORS))
        return dict(zip(names, evaluator.run(names, dict(inputs)), strict=True))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


class _Recorder(Pass):
    """A pass that remembers which nodes, as bytes, each of its proposals removes."""

    def __init__(self, rule: Pass) -> None:
        self._rule = rule
        self.name = rule.name  # type: ignore[misc]  # stands in for the pass it wraps
        self.sites = rule.sites  # type: ignore[method-assign]
        self._proposed: list[tuple[Rewrite, list[bytes]]] = []

    def propose(self, graph: Graph, node: int, settings: Settings) -> Rewrite:
        made = self._rule.propose(graph, node, settings)
        self._proposed.append((made, [_bytes(graph.model.nodes[index]) for index in sorted(made.removed)]))
        return made

    def rewrite(self, graph: Graph, found: object, settings: Settings) -> Rewrite:
        raise NotImplementedError

    def removed(self, applied: Sequence[Applied]) -> set[bytes]:
        """The nodes that the applied proposals removed."""
        kept = {id(entry.rewrite) for entry in applied}
        return {node for made, nodes in self._proposed if id(made) in kept for node in nodes}


def _bytes(message: onnx.ModelProto | onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto | bytes) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString(deterministic=True))


def _interface(model: ModelProto, imports: Mapping[str, int] | None = None) -> bytes:
    """Everything but nodes, weights and annotations; with the operator sets that it lacks imported."""
    rest = ModelProto()
    rest.CopyFrom(model)
    for domain in (imports or {}).keys() - {entry.domain for entry in model.opset_import}:
        rest.opset_import.add(domain=domain, version=(imports or {})[domain])
    for name in ("node", "initializer", "value_info", "quantization_annotation"):
        rest.graph.ClearField(name)
    return _bytes(rest)


def _check_names(model: ModelProto) -> None:
    made = [name for node in model.graph.node for name in node.output if name]
    made += [value.name for value in model.graph.input]
    made += [tensor.name for tensor in model.graph.initializer if model.ir_version >= 4]
    overridable = {value.name for value in model.graph.input} & {tensor.name for tensor in model.graph.initializer}
    twice = {name for name in made if made.count(name) > 1} - overridable
    assert not twice, f"names given twice: {sorted(twice)}"
    nodes = [node.name for node in model.graph.node if node.name]
    assert len(nodes) == len(set(nodes)), "two nodes have one name"


def _check_untouched(before: ModelProto, after: ModelProto, removed: set[bytes]) -> None:
    kept = [node for node in before.graph.node if _bytes(node) not in removed]
    dead = _dead(after, {name for node in kept for name in node.output})
    there = {_bytes(node) for node in after.graph.node}
    unread = [node for node in kept if set(node.output) <= dead and node.op_type in _MAY_GO]
    wanted = [node for node in kept if _bytes(node) in there or node not in unread]
    rest = iter(_bytes(node) for node in after.graph.node)
    gone = [node.output[0] for node in wanted if _bytes(node) not in rest]
    assert not gone, f"nodes outside the rewrites changed or moved, from '{gone[0]}' on"
    originals = {tensor.name: _bytes(tensor) for tensor in before.graph.initializer}
    for tensor in after.graph.initializer:
        if tensor.name in originals:
            assert _bytes(tensor) == originals[tensor.name], f"initializer '{tensor.name}' changed"
    infos = {value.name: _bytes(value) for value in before.graph.value_info}
    for value in after.graph.value_info:
        assert infos.get(value.name) == _bytes(value), f"value_info '{value.name}' changed"


_MAY_GO = frozenset(
    "Constant ConstantOfShape Identity Shape Gather Slice Concat Cast Squeeze Unsqueeze Mul Div".split()  # noqa: SIM905
)
"""Nodes that only several rewrites together leave without a reader: shared weights, shared shape arithmetic."""


def _dead(model: ModelProto, names: set[str]) -> set[str]:
    """Those names that no node reads (subgraphs included) and that no graph gives out."""
    read: set[str] = set()

    def look(graph: onnx.GraphProto) -> None:
        read.update(value.name for value in graph.output)
        for node in graph.node:
            read.update(node.input)
            for entry in node.attribute:
                if entry.type == onnx.AttributeProto.GRAPH:
                    look(entry.g)

    look(model.graph)
    return names - read


def check_leftovers(before: ModelProto, after: ModelProto) -> None:
    """Assert that `after` has no tensor without a reader and no annotation without a tensor, but those of `before`."""

    def unread(model: ModelProto) -> set[str]:
        made = {name for node in model.graph.node for name in node.output[:1]}
        weights = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
        return _dead(model, made | weights)

    left = unread(after) - unread(before)
    assert not left, f"tensors that nobody reads are left behind: {sorted(left)}"
    tensors = {name for node in after.graph.node for name in (*node.input, *node.output)}
    stale = {value.name for value in after.graph.value_info} - tensors
    stale -= {value.name for value in before.graph.value_info} - {n for node in before.graph.node for n in node.output}
    assert not stale, f"value_info of tensors that are gone: {sorted(stale)}"


def _check_values(before: ModelProto, after: ModelProto, found: set[Safety], sizes: Sequence[Sizes]) -> None:
    """Both models within the rounding bound of what the original means in float64, at every size and level."""
    for number, shapes in enumerate(sizes):
        inputs = feeds(before, shapes, integers=False, seed=number + 1)
        truth = run(float64_twin(before), {name: _float64(array) for name, array in inputs.items()}, "disable")
        for level in LEVELS:
            first, second = run(before, inputs, level), run(after, inputs, level)
            for name, expected in truth.items():
                _same_kind(first[name], second[name], name)
                assert np.isfinite(expected).all(), f"'{name}' is not finite"
                assert np.ptp(expected) > 0, f"'{name}' shows nothing: it is {expected.flat[0]} everywhere"
                allowed = bound(before, after, found, first[name].dtype) * np.abs(expected).max()
                for which, value in (("original", first[name]), ("rewritten", second[name])):
                    error = np.abs(value.astype(np.float64) - expected).max()
                    assert error <= allowed, f"{which} '{name}' at {level} is off by {error}, {allowed} is rounding"


def bound(before: ModelProto, after: ModelProto, found: set[Safety], dtype: np.dtype[np.generic]) -> float:
    """Relative error that rounding explains: eps per product summed, per convolution on the way, once more if combined.

    A sum of n products in any order is within n·eps of the exact one (relative to the sum of absolute values).
    """
    terms, depth = 1, 0
    for model in (before, after):
        shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
        convs = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
        depth = max(depth, len(convs))
        terms = max([terms, *(_products(node, shapes[node.input[1]]) for node in convs if node.input[1] in shapes)])
    combined = 2 if Safety.ROUNDING in found else 1
    return _EPS[np.dtype(dtype).name] * (terms + 2) * depth * combined


def _products(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    """Products summed into one output element, for a weight `[M, C/G, *K]`, of a ConvTranspose `[C, M/G, *K]`."""
    if node.op_type == "Conv":
        return prod(shape[1:])
    group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return shape[0] // group * prod(shape[2:])


def _check_bits(twin: ModelProto, step: Step, given: Sizes, sizes: Sequence[Sizes]) -> None:
    """With integer weights and inputs, weights that only moved give the same bits, at every size and level."""
    after, applied, attempts = sweep(Model.load(twin), step, given)
    assert applied, f"declines with integer weights: {[attempt.reason for attempt in attempts]}"
    for number, shapes in enumerate(sizes):
        inputs = feeds(twin, shapes, integers=True, seed=number + 11)
        for level in LEVELS:
            first, second = run(twin, inputs, level), run(after.to_proto(), inputs, level)
            for name, expected in first.items():
                _same_kind(expected, second[name], name)
                assert np.array_equal(expected, second[name]), f"'{name}' at {level}: not the same on integers"
                assert np.ptp(expected.astype(np.float64)) > 0, f"'{name}' shows nothing on integers"


def _same_kind(first: Array, second: Array, name: str) -> None:
    assert first.shape == second.shape, f"'{name}' is {second.shape}, not {first.shape}"
    assert first.dtype == second.dtype, f"'{name}' is {second.dtype}, not {first.dtype}"


def _float64(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind in "fV" else array
