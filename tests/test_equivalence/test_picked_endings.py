"""An activation whose result is taken apart, against the same activation of parts: proven by what is beneath."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from programs import program
from rewriter import audit

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((6, 8, 1, 1)).astype(np.float32), RNG.standard_normal(6).astype(np.float32)


def parts(first: str = "Relu", second: str = "Relu", **weights: Any) -> onnx.ModelProto:
    """Two convolutions of some rows each, with an activation behind each."""
    given: dict[str, Any] = {"w": W[:2], "b": B[:2], "v": W[2:], "c": B[2:]} | weights
    body = f"t = Conv (x, w, b) p = {first} (t) u = Conv (x, v, c) q = {second} (u)"
    return program(body, y="p q", x="float[1,8,5,5]", **given)


def whole(taken: str, activation: str = "Relu", **constants: Any) -> onnx.ModelProto:
    body = f"t = Conv (x, w, b) r = {activation} (t) {taken}"
    return program(body, y="p q", x="float[1,8,5,5]", w=W, b=B, **constants)


SPLIT = whole("p, q = Split <axis = 1> (r, sizes)", sizes=[2, 4])
SLICES = whole("p = Slice (r, z, two, one) q = Slice (r, two, six, one)", z=[0], one=[1], two=[2], six=[6])
GATHERS = whole("p = Gather <axis = 1> (r, i) q = Gather <axis = 1> (r, j)", i=[0, 1], j=[2, 3, 4, 5])
THROUGH = whole(
    "s = Transpose <perm = [0, 2, 3, 1]> (r) a, d = Split <axis = 3> (s, sizes) "
    "p = Transpose <perm = [0, 3, 1, 2]> (a) q = Transpose <perm = [0, 3, 1, 2]> (d)",
    sizes=[2, 4],
)


def judged(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[str, str]:
    """The verdict, and what L1 came to."""
    found = audit(before, after)
    return found.verdict, found.regions[0].levels[0].outcome


@pytest.mark.parametrize("before", [SPLIT, SLICES, GATHERS, THROUGH], ids=["Split", "Slice", "Gather", "Transpose"])
def test_parts_of_an_activation_are_activations_of_parts(before: onnx.ModelProto) -> None:
    assert judged(before, parts()) == ("equivalent", "pass")
    assert judged(parts(), before) == ("equivalent", "pass")


@pytest.mark.parametrize(
    "wrong",
    [
        parts(w=W[1:3]),
        parts(w=W[[1, 0]], b=B[[1, 0]]),
        parts(v=W[2:] * np.float32(1.001)),
        parts(second="Sigmoid"),
        parts(first="Identity"),
    ],
    ids=["other rows", "swapped", "scaled", "another activation", "none"],
)
@pytest.mark.parametrize("before", [SPLIT, GATHERS, THROUGH], ids=["Split", "Gather", "Transpose"])
def test_others_are_found(before: onnx.ModelProto, wrong: onnx.ModelProto) -> None:
    assert judged(before, wrong)[0] == "different"


def test_what_is_wrong_beneath_is_refuted_by_the_weights_alone() -> None:
    assert judged(SPLIT, parts(w=W[[1, 0]], b=B[[1, 0]])) == ("different", "fail")


def test_padding_behind_an_activation_is_no_picking() -> None:
    """The zeros that Pad brings are not what Sigmoid makes of zeros."""
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    before = program("t = Conv (x, w) r = Sigmoid (t) y = Pad (r, pads)", x="float[1,8,5,5]", w=W, pads=pads)
    after = program("t = Conv (x, w) r = Pad (t, pads) y = Sigmoid (r)", x="float[1,8,5,5]", w=W, pads=pads)
    assert judged(before, after)[0] == "different"


def test_pieces_that_end_otherwise_are_not_taken_for_one() -> None:
    """Of a Concat of a Relu and a Sigmoid: what is picked has the one, the other, or both."""
    body = "t = Conv (x, w) r = Relu (t) u = Conv (x, v) s = Sigmoid (u) c = Concat <axis = 1> (r, s) "
    taken = "p, q = Split <axis = 1> (c, sizes)"
    before = program(body + taken, y="p q", x="float[1,8,5,5]", w=W, v=W, sizes=[6, 6])
    after = parts("Relu", "Sigmoid", w=W, v=W, b=0 * B, c=0 * B)
    swapped = parts("Sigmoid", "Relu", w=W, v=W, b=0 * B, c=0 * B)
    assert judged(before, after)[0] != "different"
    assert judged(before, swapped)[0] == "different"


@pytest.mark.parametrize("bound", [1e6, 6.0])
def test_pieces_with_activations_of_their_own_keep_them_when_they_are_picked(bound: float) -> None:
    """One half is clipped, the other is not, a Relu is behind both: which half is which matters."""

    def halves(clipped: str, free: str, taken: str, mark: str = "") -> onnx.ModelProto:
        model = program(
            f"a{mark} = Conv (x, {clipped}) c{mark} = Conv (x, {free}) d{mark} = Concat <axis = 1> (a{mark}, c{mark}) "
            f"r{mark} = Relu (d{mark}) {taken} = Split <axis = 1> (r{mark}, sizes)",
            y="y z",
            x="float[1,8,5,5]",
            w=W,
            v=W[::-1].copy(),
            sizes=[6, 6],
        )
        fused = model.graph.node[0]
        fused.op_type, fused.domain = "FusedConv", "com.microsoft"
        fused.attribute.append(onnx.helper.make_attribute("activation", "Clip"))
        fused.attribute.append(onnx.helper.make_attribute("activation_params", [-bound, bound]))
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return model

    before, after = halves("w", "v", "y, z"), halves("v", "w", "z, y", "2")
    verdict, proof = judged(before, after)
    assert verdict != "equivalent"
    assert proof != "pass"


@pytest.mark.parametrize("leaving", ["p", "q"])
def test_a_part_that_goes_on_inside_is_paired_whichever_part_it_is(leaving: str) -> None:
    """Of the two parts of an activation one leaves the region and the other one is convolved there."""
    inner = "q" if leaving == "p" else "p"
    grouped = RNG.standard_normal((6, 4, 1, 1)).astype(np.float32)
    narrow = RNG.standard_normal((3, 1, 1, 1)).astype(np.float32)
    dense, wide = np.zeros((6, 8, 1, 1), np.float32), np.zeros((3, 3, 1, 1), np.float32)
    dense[:3, :4], dense[3:, 4:] = grouped[:3], grouped[3:]
    wide[range(3), range(3)] = narrow[:, 0]

    def network(first: int, second: int, mark: str, **weights: Any) -> onnx.ModelProto:
        """Tensors inside have names of their own, so that the whole is one region."""
        p, q = (name if name == leaving else name + mark for name in ("p", "q"))
        body = (
            f"t{mark} = Conv <group = {first}> (x, w) r{mark} = Relu (t{mark}) "
            f"{p}, {q} = Split <axis = 1> (r{mark}, sizes) y = Conv <group = {second}> ({inner}{mark}, v)"
        )
        return program(body, y=f"{leaving} y", x="float[1,8,5,5]", sizes=[3, 3], **weights)

    before, after = network(2, 3, "", w=grouped, v=narrow), network(1, 1, "2", w=dense, v=wide)
    assert judged(before, after) == ("equivalent", "pass")
