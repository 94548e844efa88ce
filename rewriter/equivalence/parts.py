"""What every audit that runs parts of a model needs: what to capture, what enters a part, how large it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import onnx

from rewriter.bindings import Binding
from rewriter.constants import Array, tensor_value
from rewriter.equivalence.records import Audit, Witness
from rewriter.equivalence.regions import Diff, Region, Side
from rewriter.equivalence.verdict import weakest
from rewriter.equivalence.whole import Run
from rewriter.model import Model
from rewriter.wiring import used_names

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total)."""


def silent(stage: str, done: int, total: int) -> None:
    """Nobody wants to know."""
    del stage, done, total


def captures(model: Model, side: Side, regions: Sequence[Region]) -> dict[str, onnx.TypeProto]:
    """Tensors inside the original that enter regions and are neither known nor inputs or outputs already."""
    listed = {value.name for value in (*model.skeleton.graph.input, *model.outputs)}
    return {
        name: side.bound.types[name]
        for region in regions
        for name in region.inputs
        if name not in listed and name in side.bound.types
    }


def usable(diffs: list[Diff], bindings: Sequence[Binding], runs: Sequence[Run]) -> tuple[list[Diff], Sequence[str]]:
    """Without the bindings that the original does not run at, though it runs at the first, and a note on each.

    Nobody asked for those shapes: what the rewritten model does there says nothing against it.
    """
    ran = {run.binding for run in runs}
    if 0 not in ran:
        return diffs, ()
    notes = []
    for index, binding in enumerate(bindings):
        if index not in ran:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in binding.shapes.items())
            notes.append(f"The original does not run with the inputs' shapes {shapes}, so nothing was compared there.")
    return [diff for index, diff in enumerate(diffs) if index in ran], notes


def reached(model: Model, tensors: Collection[str]) -> frozenset[str]:
    """The graph outputs that are computed from any of these tensors."""
    found = set(tensors)
    for node in model.nodes:
        if found & used_names([node]):
            found.update(name for name in node.output if name)
    return frozenset(value.name for value in model.outputs if value.name in found)


def elements(region: Region, diff: Diff) -> int:
    """Elements of the largest tensor in the region, where shapes are known."""
    sides = ((diff.before, region.before), (diff.after, region.after))
    made = (side.bound.shape(name) for side, nodes in sides for i in nodes for name in side.model.nodes[i].output)
    return max((math.prod(shape) for shape in made if shape is not None), default=0)


def entering(region: Region, side: Side, run: Run) -> dict[str, Array]:
    """The region's inputs in one run of the original; incomplete when something was not captured."""
    found: dict[str, Array] = {}
    for name in region.inputs:
        if name in run.captured:
            found[name] = run.captured[name]
        elif name in side.model.overridable:
            found[name] = tensor_value(side.model, side.model.initializer(name))
        elif name in run.plain:
            found[name] = run.plain[name]
        elif (value := side.bound.value(name)) is not None:
            found[name] = value
    return found


def problem_of(witnesses: Sequence[Witness]) -> str:
    """Why the original could not be run, and what to give where the auditor had to choose sizes; empty if it could."""
    if not witnesses or not witnesses[0].problem:
        return ""
    first = witnesses[0]
    if not first.chosen or "cannot load" in first.problem or "--input" in first.problem:
        return first.problem
    names = ", ".join(f"'{name}'" for name in first.chosen)
    return f"{first.problem.rstrip('. ')} (nobody gave all sizes of {names}: give them with --input-shape, or --inputs)"


def deployed_too(full: Audit, deployed: Audit) -> Audit:
    """An audit in full precision, and the same runs as deployed: the verdict is the weaker one."""
    verdict = weakest((full.verdict, deployed.verdict))
    reason = full.reason if verdict == full.verdict else f"In TF32, as deployed: {deployed.reason}"
    grade = full.grade if verdict == "equivalent" else None
    return full.model_copy(update={"verdict": verdict, "grade": grade, "reason": reason, "deployed": deployed})


def single_precision(model: Model) -> bool:
    """Whether the model may compute in float32, so that TF32 could make a difference.

    Looked for in its constants, inputs, casts and functions.
    """
    if any(
        node.op_type in ("Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear") for node in model.nodes
    ):
        return True
    kinds = {tensor.data_type for tensor in model.headers.values()}
    kinds |= {value.type.tensor_type.elem_type for value in model.skeleton.graph.input}
    return onnx.TensorProto.FLOAT in kinds or bool(model.skeleton.functions)
