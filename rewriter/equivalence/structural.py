"""L0: both models are valid ONNX, and they have the same interface.

A refusal here needs no run.  Whatever else differs outside the nodes (operator sets, functions, metadata) is a note:
what it means for the computation is for the other levels to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from rewriter.constants import tensor_value
from rewriter.equivalence.records import LevelResult, failed, passed
from rewriter.model import Model
from rewriter.provenance import unstamped

_DOMAINS = {"ai.onnx": ""}


def compare_structure(before: Model, after: Model) -> tuple[LevelResult, tuple[str, ...]]:
    """Level L0 and the notes on differences that do not decide."""
    notes = list(_notes(before, after))
    broken = check(after)
    if broken and check(before):
        notes.append(f"ONNX's checker already refuses the original ({check(before)}), so it cannot judge the rewrite.")
    elif broken:
        return failed("L0", f"ONNX's checker refuses the rewritten model: {broken}."), tuple(notes)
    problems: list[str] = []
    for kind, old, new in (
        ("input", _inputs(before), _inputs(after)),
        ("output", before.outputs, after.outputs),
    ):
        _compare_values(kind, old, new, problems, notes)
    _compare_defaults(before, after, problems)
    if problems:
        return failed("L0", f"The interface differs: {problems[0]}.", problems=len(problems)), tuple(notes)
    return passed("L0", "Both models are valid and have the same inputs and outputs."), tuple(notes)


def check(model: Model) -> str:
    """What ONNX's checker says about the model without its weights; empty when it accepts.

    Initializers become graph inputs, so that no weight is read: any size and external data are fine.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model.skeleton)
    listed = {value.name for value in bare.graph.input}
    for tensor in bare.graph.initializer:
        if tensor.name not in listed:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del bare.graph.initializer[:]
    try:
        onnx.checker.check_model(bare)
    except onnx.checker.ValidationError as error:
        return str(error).split("\n")[0].strip().rstrip(".") or "no reason given"
    return ""


def _inputs(model: Model) -> tuple[onnx.ValueInfoProto, ...]:
    """Inputs a caller may or must feed: up to IR 3, listed initializers are constants and no part of the interface."""
    return tuple(
        value
        for value in model.skeleton.graph.input
        if value.name not in model.headers or value.name in model.overridable
    )


def _compare_values(
    kind: str,
    old: Sequence[onnx.ValueInfoProto],
    new: Sequence[onnx.ValueInfoProto],
    problems: list[str],
    notes: list[str],
) -> None:
    old_names, new_names = [value.name for value in old], [value.name for value in new]
    if old_names != new_names:
        problems.append(f"the {kind}s were {_listed(old_names)} and are {_listed(new_names)}")
        return
    for was, now in zip(old, new, strict=True):
        _compare_type(kind, was, now, problems, notes)


def _compare_type(
    kind: str, was: onnx.ValueInfoProto, now: onnx.ValueInfoProto, problems: list[str], notes: list[str]
) -> None:
    where = f"{kind} '{was.name}'"
    a, b = was.type.tensor_type, now.type.tensor_type
    if was.type.WhichOneof("value") != now.type.WhichOneof("value"):
        problems.append(f"{where} was a {was.type.WhichOneof('value')} and is a {now.type.WhichOneof('value')}")
        return
    if a.elem_type != b.elem_type:
        problems.append(f"{where} was {_dtype(a.elem_type)} and is {_dtype(b.elem_type)}")
    if not a.HasField("shape") or not b.HasField("shape"):
        fixed = [size for dim in b.shape.dim if isinstance(size := _size(dim), int)]
        if kind == "input" and not a.HasField("shape") and fixed:
            sizes = ", ".join(str(_size(dim)) for dim in b.shape.dim)
            problems.append(f"{where} had no declared shape and is now fixed to [{sizes}]")
        elif a.HasField("shape") != b.HasField("shape"):
            notes.append(f"The shape of {where} is declared in one model only.")
        return
    if len(a.shape.dim) != len(b.shape.dim):
        problems.append(f"{where} had {len(a.shape.dim)} dimensions and has {len(b.shape.dim)}")
        return
    for axis, (old, new) in enumerate(zip(a.shape.dim, b.shape.dim, strict=True)):
        _compare_dim(f"dimension {axis} of {where}", kind, old, new, problems, notes)


def _compare_dim(
    where: str,
    kind: str,
    old: onnx.TensorShapeProto.Dimension,
    new: onnx.TensorShapeProto.Dimension,
    problems: list[str],
    notes: list[str],
) -> None:
    was, now = _size(old), _size(new)
    if was == now:
        return
    if isinstance(was, int) and isinstance(now, int):
        problems.append(f"{where} was {was} and is {now}")
    elif isinstance(now, int) and kind == "input":
        problems.append(f"{where} was free ('{was}') and is now fixed to {now}")
    elif isinstance(now, int):
        notes.append(f"{where[0].upper()}{where[1:]} was '{was}' and is now declared as {now}.")
    else:
        notes.append(f"{where[0].upper()}{where[1:]} was '{was}' and is now called '{now}'.")


def _compare_defaults(before: Model, after: Model, problems: list[str]) -> None:
    """Initializers that a caller may override are inputs with a default value; the default is part of the interface."""
    for name in sorted(before.overridable & after.overridable):
        old, new = (tensor_value(model, model.initializer(name)) for model in (before, after))
        if old.dtype != new.dtype or old.shape != new.shape or old.tobytes() != new.tobytes():
            problems.append(f"the default value of the overridable input '{name}' changed")
    for name in sorted(before.overridable ^ after.overridable):
        problems.append(f"'{name}' can be overridden by the caller in one model only")


def _notes(before: Model, after: Model) -> Iterator[str]:
    a, b = before.skeleton, after.skeleton
    versions = [{_DOMAINS.get(e.domain, e.domain): e.version for e in m.opset_import} for m in (a, b)]
    if versions[0] != versions[1]:
        yield f"The operator sets were {versions[0]} and are {versions[1]}."
    if a.ir_version != b.ir_version:
        yield f"The IR version was {a.ir_version} and is {b.ir_version}."
    if [f.SerializeToString(deterministic=True) for f in a.functions] != [
        f.SerializeToString(deterministic=True) for f in b.functions
    ]:
        yield "The model's functions differ."
    if unstamped(a.metadata_props) != unstamped(b.metadata_props):
        yield "The metadata of the model differs."
    if (a.doc_string, a.graph.doc_string) != (b.doc_string, b.graph.doc_string):
        yield "The documentation strings differ."


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or "?"


def _dtype(code: int) -> str:
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))) if code else "of no declared type"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
