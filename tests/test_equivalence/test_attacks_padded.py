"""Attacks on the proof of padded and permuted channels, on joined activations, and on what is only approximated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from test_equivalence.nets import Array, audited, chain
from test_equivalence.padded_pairs import NOT_FINITE, PADDED, RIGHT, SAME, WRONG, C, draw, node, ops, pair, put


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pairs_are_not_accepted(name: str) -> None:
    found = audited(*WRONG[name]())
    assert not found.accepted, found.reason
    assert found.verdict != "equivalent", found.reason


@pytest.mark.parametrize("name", sorted(WRONG.keys() - NOT_FINITE))
def test_l1_does_not_show_wrong_pairs(name: str) -> None:
    """Not even where the integers of L2 would refute them: each level stands by itself."""
    found = audited(*WRONG[name]())
    assert [level.outcome for region in found.regions for level in region.levels if level.level == "L1"] != ["pass"]


@pytest.mark.parametrize("name", RIGHT)
def test_right_pairs_are_equivalent(name: str) -> None:
    found = audited(*RIGHT[name]())
    assert found.verdict == "equivalent", [(level.level, level.detail) for r in found.regions for level in r.levels]


def test_zeros_beside_what_is_composed_are_zeros_inserted() -> None:
    """0 times infinity is not 0: where an infinity enters, what reads the padding is NaN, and was infinite."""
    found = audited(*pair(ops("Identity"), PADDED)())
    assert (found.verdict, found.grade) == ("equivalent", "finite")


X = draw(1, 3, 6, 7, seed=9)
W, W2, W3 = draw(6, 3, 3, 3), draw(5, 6, 1, 1, seed=2), draw(4, 5, 1, 1, seed=4)


def off(value: Array, share: float) -> Array:
    return (value * (1 + share * draw(*value.shape, seed=50))).astype(np.float32)


def line(
    p: str = "", w: Array = W, w2: Array = W2, *, batch: int | str = 1, middle: str = "t", act: str = "Identity"
) -> onnx.ModelProto:
    """Conv(w) → `middle` → Conv(w2) → `u` → Relu → Conv; `act` before the second Conv has one name in all models."""
    nodes = [
        node("Conv", ["x", f"{p}w"], [middle]),
        *([node(act, [middle], ["a"])] if act != "Identity" else []),
        node("Conv", ["a" if act != "Identity" else middle, f"{p}w2"], ["u"]),
        node("Relu", ["u"], [f"{p}r"]),
        node("Conv", [f"{p}r", f"{p}w3"], ["y"]),
    ]
    return chain(nodes, {f"{p}w": w, f"{p}w2": w2, f"{p}w3": W3}, [batch, 3, 6, 7])


def poisoned() -> Array:
    value = X.copy()
    value[0, 0, 0, 0] = np.nan
    return value


GARBAGE = (W[::-1] * 9).astype(np.float32)
UNMEASURED: Mapping[str, tuple[Array, ...]] = {
    "no inputs": (),
    "inputs without an element": (X[:0],),
    "inputs that give nothing but zeros": (X * 0,),
    "a NaN": (poisoned(),),
    "a NaN in one of two": (poisoned(), X),
}


@pytest.mark.parametrize("name", UNMEASURED)
def test_an_error_that_cannot_be_measured_is_not_within_what_is_allowed(name: str) -> None:
    samples = tuple({"x": value} for value in UNMEASURED[name])
    models = line(batch="n", act="Relu"), line("q/", GARBAGE, batch="n", act="Relu")
    found = audited(*models, samples=samples, approximated={"t": 0.2})
    assert not found.accepted, found.reason


def test_an_error_that_overflows_is_not_within_what_is_allowed() -> None:
    models = [
        chain([node("MatMul", ["x", name], ["y"])], {name: value * 1e200}, [3, 4])
        for name, value in {"w": np.eye(4), "q/w": -np.ones((4, 4))}.items()
    ]
    sample = {"x": np.random.default_rng(0).standard_normal((3, 4))}
    assert not audited(*models, samples=(sample,), approximated={"y": 0.1}).accepted


def approximation_beside(second: Array, **changed: Any) -> bool:
    """Whether a small error that is allowed in the first Conv is accepted with the second one as given."""
    models = line(act=changed.get("act", "Identity")), line("q/", off(W, 0.02), second, **changed)
    name = changed.get("middle", "t")
    return audited(*models, samples=({"x": X},), approximated={name: 0.3}).accepted


def test_what_is_within_the_error_allowed_is_accepted() -> None:
    assert approximation_beside(W2, act="Relu")


def test_an_approximation_does_not_take_in_a_wrong_region_next_to_it() -> None:
    assert not approximation_beside(off(W2, 0.02), act="Relu")
    assert not approximation_beside(off(W2, 0.02))


def test_an_approximation_does_not_take_in_nodes_that_were_not_named() -> None:
    assert not approximation_beside(off(W2, 0.02), middle="s")


def branches(p: str, channels: Sequence[int], first: Array) -> onnx.ModelProto:
    """Conv → `y`, and beside it Conv → Exp → Conv → `z` with padded channels that overflow where inputs are large."""
    values = {
        f"{p}w": first,
        f"{p}u": put(draw(C, 3, 1, 1, seed=20) * np.float32(0.001), channels, 0, 0.4),
        f"{p}v": put(draw(4, C, 1, 1, seed=21), channels, 1),
    }
    nodes = [
        node("Conv", ["x", f"{p}w"], ["y"]),
        node("Conv", ["x", f"{p}u"], [f"{p}e"]),
        node("Exp", [f"{p}e"], [f"{p}f"]),
        node("Conv", [f"{p}f", f"{p}v"], ["z"]),
    ]
    made = chain(nodes, values, [1, 3, 6, 7])
    made.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    return made


def test_an_approximation_elsewhere_hides_nothing() -> None:
    """What only the whole model's runs on large inputs show is seen in spite of an approximation in another branch."""
    assert not audited(branches("", SAME, W), branches("q/", PADDED, W)).accepted
    models = branches("", SAME, W), branches("q/", PADDED, off(W, 0.02))
    assert not audited(*models, samples=({"x": X},), approximated={"y": 0.1}).accepted


def test_an_approximation_keeps_the_shapes_of_other_batches() -> None:
    """Measured on one image; a batch of three comes out as one."""
    before = chain([node("Conv", ["x", "w"], ["y"])], {"w": W}, ["n", 3, 6, 7])
    ends = {name: np.asarray([value], np.int64) for name, value in {"q/0": 0, "q/1": 1}.items()}
    nodes = [node("Slice", ["x", "q/0", "q/1", "q/0"], ["q/x"]), node("Conv", ["q/x", "q/w"], ["y"])]
    after = chain(nodes, {"q/w": W, **ends}, ["n", 3, 6, 7])
    assert not audited(before, after, samples=({"x": X},), approximated={"y": 0.1}).accepted
