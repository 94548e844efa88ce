"""L0's notes and refusals, and which nodes of two models are found to differ."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewriter.bindings import find_bindings
from rewriter.equivalence.regions import Diff, Region
from rewriter.equivalence.structural import check, compare_structure
from rewriter.model import Model
from rewriter.shapes import bind
from test_equivalence import rewrites as rw
from test_equivalence.nets import net


def regions(before: onnx.ModelProto, after: onnx.ModelProto, *, meet: bool = True) -> tuple[Region, ...]:
    a, b = Model.load(before), Model.load(after)
    (binding, *_) = find_bindings(a)
    return Diff(a, b, (binding.bound, bind(b, binding.shapes))).regions(meet=meet)


def compared(before: onnx.ModelProto, after: onnx.ModelProto) -> tuple[str, str, tuple[str, ...]]:
    result, notes = compare_structure(Model.load(before), Model.load(after))
    return result.outcome, result.detail, notes


def test_a_more_precise_output_is_a_note() -> None:
    before = net()
    after = rw.clone(before)
    after.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 6
    outcome, _, notes = compared(before, after)
    assert outcome == "pass"
    assert "now declared as 6" in notes[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: _fix(g.input[0], 0, 2), "fixed to 2"),
        (lambda g: _fix(g.input[0], 1, 9), "was 8 and is 9"),
        (lambda g: g.output.pop(), "outputs were 'y' and are none"),
        (lambda g: setattr(g.output[0].type.tensor_type, "elem_type", 10), "was float32 and is float16"),
        (lambda g: g.output[0].type.tensor_type.shape.dim.pop(), "had 4 dimensions and has 3"),
    ],
)
def test_another_interface_is_refused(change: object, says: str) -> None:
    assert callable(change)
    before = net(batch="N")
    after = rw.clone(before)
    change(after.graph)
    outcome, detail, _ = compared(before, after)
    assert outcome == "fail"
    assert says in detail or "checker" in detail


def _fix(value: onnx.ValueInfoProto, axis: int, size: int) -> None:
    value.type.tensor_type.shape.dim[axis].Clear()
    value.type.tensor_type.shape.dim[axis].dim_value = size


def test_an_original_that_the_checker_refuses_does_not_condemn_the_rewrite() -> None:
    before = net()
    rw.node_of(before, "r").op_type = "Rellu"
    outcome, _, notes = compared(before, rw.clone(before))
    assert outcome == "pass"
    assert "already refuses the original" in notes[-1]


def test_metadata_opsets_and_documentation_are_notes() -> None:
    before = net()
    after = rw.clone(before)
    after.doc_string = "other"
    after.metadata_props.add(key="a", value="b")
    after.opset_import.add(domain="extra", version=1)
    outcome, _, notes = compared(before, after)
    assert outcome == "pass"
    assert len(notes) == 3


def test_the_checker_needs_no_weights() -> None:
    model = net(groups=8, inputs=8)  # weights over 1 KiB are not in the skeleton
    assert check(Model.load(model)) == ""


def test_equal_models_have_no_regions() -> None:
    before = net()
    after = rw.clone(before)
    for node in after.graph.node:
        node.name, node.doc_string = f"renamed {node.output[0]}", "documented"
    assert regions(before, after) == ()


def test_a_region_is_what_differs_and_no_more() -> None:
    before = net()
    (region,) = regions(before, rw.depthwise_summed(before, "t", (2, 8, 6, 7)))
    assert region == Region((2,), (2, 3, 4, 5, 6), ("a",), ("t",))


def test_weights_of_equal_name_and_other_content_differ() -> None:
    before = net()
    after = rw.clone(before)
    rw.set_weight(after, "w_tail", rw.weight_of(before, "w_tail") * 2)
    (region,) = regions(before, after)
    assert (region.before, region.inputs, region.outputs) == ((4,), ("r",), ("y",))


def test_a_constant_spelled_in_another_way_is_the_same() -> None:
    before = net()
    after = rw.clone(before)
    value = rw.weight_of(before, "w")
    del after.graph.initializer[:]
    after.graph.initializer.extend(tensor for tensor in before.graph.initializer if tensor.name != "w")
    after.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(value)))
    assert regions(before, after) == ()


def test_two_rewrites_in_a_row_meet_at_the_tensor_between_them() -> None:
    before = net()
    after = rw.regrouped(before, "t", 2)
    old = rw.node_of(after, "h")
    rw.set_weight(after, "w_head2", rw.weight_of(before, "w_head"))
    old.input[1] = "w_head2"
    rw.node_of(after, "a").op_type = "Abs"
    found = regions(before, after)
    assert [region.outputs for region in found] == [("a",), ("t",)]  # a weight's name means nothing
    (larger,) = regions(before, after, meet=False)
    assert (larger.inputs, larger.outputs) == (("h",), ("t",))


def test_an_opset_that_changes_an_operator_changes_its_nodes() -> None:
    before = net(opset=12)
    before.graph.node.append(helper.make_node("Softmax", ["y"], ["p"]))
    before.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    after = rw.clone(before)
    after.opset_import[0].version = 13  # Softmax has another default axis there; Conv and Relu stay as they are
    found = regions(before, after)
    assert any("p" in region.outputs for region in found)
    assert all("t" not in region.outputs for region in found)


def test_an_output_folded_into_a_constant_is_a_region() -> None:
    before = net()
    after = rw.clone(before)
    rw.set_weight(after, "y", np.zeros((2, 5, 6, 7), np.float32))
    rw.splice(after, ["y"], [])
    (region,) = regions(before, after)
    assert (region.outputs, region.after) == (("y",), ())
