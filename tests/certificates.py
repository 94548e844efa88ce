"""Pairs of models, their certificates, and every way to change one leaf of a certificate's JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import rewriter
from graphs import grouped_conv, model, node, tensor, value
from rewriter.certificate import Certificate, certify
from rewriter.equivalence import Audit
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Step, sweep
from rewriter.provenance import stamp
from rewriter.registry import pass_named
from rewriter.rule import Settings

Path_ = tuple[str | int, ...]
"""Keys and positions that lead to a leaf."""


def regrouped() -> tuple[Model, Model]:
    """A grouped convolution, and the same with wider groups, stamped: equivalent (finite)."""
    before = Model.load(grouped_conv())
    after, _, _ = sweep(before, Step(pass_named("regroup"), {"factor": 2}), {})
    return before, stamp(after, ["regroup"], before)


def one_weight_off() -> tuple[Model, Model]:
    """The same convolution with one weight off by a unit in the last place: different (L1)."""
    made = grouped_conv()
    weight = onnx.numpy_helper.to_array(made.graph.initializer[0]).copy()
    weight[3, 1, 1, 1] = np.nextafter(weight[3, 1, 1, 1], np.float32(9))
    made.graph.initializer[0].CopyFrom(tensor("w", weight))
    return Model.load(grouped_conv()), Model.load(made)


def refused() -> tuple[Model, Model]:
    """Two models of an operator that ONNX Runtime does not have: not verified."""
    made = model([node("Mystery", ["x"], ["y"], domain="com.example")], [value("x", [2])], [value("y", [2])])
    made.opset_import.add(domain="com.example", version=1)
    other = onnx.ModelProto.FromString(made.SerializeToString())
    other.graph.node[0].attribute.append(onnx.helper.make_attribute("strength", 1))
    return Model.load(made), Model.load(other)


PAIRS = {"equivalent": regrouped, "different": one_weight_off, "not_verified": refused}


@functools.cache
def certificate(name: str = "equivalent", full: bool = False) -> Certificate:
    """The certificate of one of the PAIRS."""
    return certify(*PAIRS[name](), RunOptions(full=full))


def rewritten(
    made: onnx.ModelProto,
    name: str,
    settings: Settings,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> tuple[Model, Model, Audit]:
    """A model before and after a pass, without a stamp, and the audit that the engine made of it."""
    result = rewriter.rewrite(made, [name], options, settings={name: settings}, stamped=False)
    assert result.report.audit is not None
    return Model.load(made), result.rewritten, result.report.audit


def leaves(plain: Any, at: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value of a JSON document that holds no others, with the way to it."""
    entries: Sequence[tuple[str | int, Any]] = ()
    if isinstance(plain, dict):
        entries = list(plain.items())
    elif isinstance(plain, list):
        entries = list(enumerate(plain))
    else:
        yield at, plain
    for key, entry in entries:
        yield from leaves(entry, (*at, key))


def changed(plain: dict[str, Any], at: Path_, to: Any) -> dict[str, Any]:
    """A copy with another value at the end of that way."""
    copy: dict[str, Any] = json.loads(json.dumps(plain))
    inner: Any = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = to
    return copy


def other_value(leaf: Any) -> Any:
    """Another value of the same kind, and one that could stand there wherever there are few."""
    several = (
        ("equivalent", "approximate", "different", "not_verified"),
        ("bitwise", "exact", "finite", "rounding"),
        ("pass", "fail"),
        ("L1", "L2", "L3"),
        ("same", "differs"),
        ("cpu", "cuda"),
        ("disable", "all"),
        ("full", "tf32"),
    )
    for kind in several:
        if leaf in kind:
            return kind[(kind.index(leaf) + 1) % len(kind)]
    if isinstance(leaf, bool):
        return not leaf
    if isinstance(leaf, int | float):
        return leaf + 1
    if leaf is None:
        return 0.5
    if len(leaf) == 64:
        return leaf[::-1]
    return f"{leaf}x"


def written(plain: dict[str, Any], folder: Path) -> Path:
    """The document as a file."""
    path = folder / "certificate.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    return path
