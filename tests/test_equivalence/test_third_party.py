"""Files of other tools: right ones are equivalent, wrong ones different, and what is wrong is named.

The pairs are written out in other_tools.py; the last tests run the tools themselves, where they are installed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.third_party_damage import DAMAGES
from benchmarks.third_party_tools import CONVERTERS
from test_equivalence.nets import audited
from test_equivalence.other_tools import MICROSOFT, RIGHT, WRONG, activated, model, network, node, weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", RIGHT)
def test_what_tools_do_rightly_is_equivalent(name: str) -> None:
    pair, grade = RIGHT[name]
    found = audited(*pair())
    assert (found.verdict, found.grade) == ("equivalent", grade), found.reason


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_different_and_named(name: str) -> None:
    pair, where = WRONG[name]
    found = audited(*pair())
    assert found.verdict == "different", found.reason
    wrong = [region for region in found.regions if not region.accepted]
    assert all(level.outcome != "pass" for region in wrong for level in region.levels if level.level == "L1")
    told = [found.reason] + [f"{region.outputs} {region.reason}" for region in wrong]
    assert any(f"'{where}'" in text for text in told), told


def test_renamed_tensors_are_no_regions() -> None:
    assert audited(network(), network("uvwpqr")).regions == ()


def test_a_name_that_means_something_else_is_no_proof() -> None:
    """The second model gives the names of the first to other tensors, and is another one."""
    assert audited(network(), network("bcdaef", order=True)).verdict == "different"


def test_an_operator_that_is_not_known_is_no_other() -> None:
    """Its values are numbered by operator and attributes: another attribute is another value."""
    x = (2, 5, 6)
    one, other = (
        model([node("LpNormalization", ["x"], ["a"], p=p), node("Softmax", ["a"], ["y"])], None, x) for p in (1, 2)
    )
    renamed = model([node("LpNormalization", ["x"], ["b"], p=1), node("Softmax", ["b"], ["y"])], None, x)
    assert audited(one, renamed).verdict == "equivalent"
    assert audited(one, other).verdict == "different"


def _behind_a_scale(*, folded: bool, axis: int = -1, gain: float = 1.0) -> onnx.ModelProto:
    """A convolution scaled per channel, Softmax and LayerNormalization of it, and a convolution; no name in common."""
    p = "q" if folded else "p"
    by = weights(4, 1, 1, seed=6)
    first = [node("Conv", ["x", "w"], [f"{p}t"])]
    if not folded:
        first = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "by"], ["pt"])]
    nodes = [
        *first,
        node("Softmax", [f"{p}t"], [f"{p}s"], axis=axis),
        node("LayerNormalization", [f"{p}s", "g"], [f"{p}n"]),
        node("Conv", [f"{p}n", "v"], ["y"]),
    ]
    w = weights(4, 3, 3, 3) * by.reshape(4, 1, 1, 1) if folded else weights(4, 3, 3, 3)
    values = {"w": w, "v": weights(5, 4, 1, 1), "g": weights(4, seed=7) * np.float32(gain)}
    return model(nodes, values if folded else {**values, "by": by})


@pytest.mark.parametrize(("changed", "outcome"), [({}, "pass"), ({"axis": 1}, "other"), ({"gain": 1.5}, "other")])
def test_l1_takes_no_operator_for_another_that_it_knows_nothing_of(changed: dict[str, Any], outcome: str) -> None:
    """Whatever runs say: L1 by itself must not show it where an attribute or a constant operand is another."""
    found = audited(_behind_a_scale(folded=False), _behind_a_scale(folded=True, **changed))
    (region,) = found.regions
    level = region.level("L1")
    assert level is not None
    assert (level.outcome == "pass") == (outcome == "pass"), level.detail
    assert found.verdict == ("equivalent" if outcome == "pass" else "different")


def test_l1_follows_no_operator_that_rounding_can_flip() -> None:
    """Whole numbers of sums that are the same up to rounding: runs may agree, a proof it is none."""

    def rounded(fold: bool) -> onnx.ModelProto:
        after = [node("Floor", ["t"], ["f"]), node("Conv", ["f", "v"], ["y"])]
        values = {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 1, 1), "k": weights(4, 1, 1, seed=6)}
        if fold:
            values["w"] = values["w"] * values.pop("k").reshape(4, 1, 1, 1)
            renamed = [node("Floor", ["s"], ["g"]), node("Conv", ["g", "v"], ["y"])]
            return model([node("Conv", ["x", "w"], ["s"]), *renamed], values)
        return model([node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["t"]), *after], values)

    found = audited(rounded(fold=False), rounded(fold=True))
    assert [region.level("L1").outcome for region in found.regions] == ["not applicable"]  # type: ignore[union-attr]
    assert found.verdict != "equivalent"


def test_random_operators_are_not_computed_once() -> None:
    twice = [
        node("RandomNormalLike", ["x"], ["a"]),
        node("RandomNormalLike", ["x"], ["b"]),
        node("Sub", ["a", "b"], ["y"]),
    ]
    once = [node("RandomNormalLike", ["x"], ["a"]), node("Sub", ["a", "a"], ["y"])]
    assert audited(model(twice), model(once)).verdict != "equivalent"


def test_a_function_of_the_models_is_not_the_operator_of_its_name() -> None:
    """A model that defines QuickGelu itself means its own."""
    fused = activated([node("QuickGelu", ["t"], ["u"], domain=MICROSOFT, alpha=1.0)])
    own = onnx.ModelProto()
    own.CopyFrom(fused)
    own.functions.append(
        onnx.helper.make_function(
            MICROSOFT, "QuickGelu", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [onnx.helper.make_opsetid("", 17)]
        )
    )
    assert audited(fused, own).verdict != "equivalent"


def _converted(tool: str, before: Path, after: Path) -> onnx.ModelProto:
    command = [sys.executable, "-m", "benchmarks.third_party_tools", tool, str(before), str(after)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return onnx.load(after)


@pytest.mark.parametrize("tool", CONVERTERS)
@pytest.mark.parametrize("name", ["Gelu", "Constant nodes to shared initializers", "shapes folded", "a scale folded"])
def test_the_tools_themselves(tool: str, name: str, tmp_path: Path) -> None:
    """What they make of the first model of a pair; and damaged, where it has something to damage."""
    if importlib.util.find_spec(CONVERTERS[tool][0]) is None:
        pytest.skip(f"{CONVERTERS[tool][0]} is not installed")
    before = onnx.shape_inference.infer_shapes(RIGHT[name][0]()[0])  # onnxsim takes no output without a shape
    onnx.save(before, tmp_path / "before.onnx")
    after = _converted(tool, tmp_path / "before.onnx", tmp_path / "after.onnx")
    found = audited(before, after)
    assert found.verdict == "equivalent", found.reason
    for damage in DAMAGES.values():
        damaged = damage(after, 0, before)
        if damaged is not None:
            found = audited(before, damaged.model)
            assert found.verdict == "different", (damaged.what, found.reason)


def test_every_damage_damages() -> None:
    before = activated([node("Conv", ["t", "p"], ["u"], pads=[1, 1, 1, 1])], {"p": weights(4, 4, 3, 3)})
    for damage in (DAMAGES["a weight by 1 ulp"], DAMAGES["pads moved"]):
        found = damage(before, 0, before)
        assert found is not None
        assert found.model != before
        assert audited(before, found.model).verdict == "different"
