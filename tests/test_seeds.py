"""The reference programs: TensorFlow's own numbers, and what each program becomes (tests/data/seeds/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from funnel import LEVELS, check, declines, run
from models.emit import Array
from rewriter import Safety
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import all_passes
from twins import text

SEEDS = Path(__file__).parent / "data" / "seeds"
NAMES = sorted(path.stem for path in SEEDS.glob("*.onnx"))
FORWARD, BACK, REGROUP = "grouped-to-depthwise-sum", "depthwise-sum-to-grouped", "regroup"

# What each pass makes of each program, where it applies; everywhere else it declines.  `Conv/g` has g groups.
BECOMES = {
    ("seed1_accepted_static", BACK): "Transpose Conv/32 Transpose Relu",
    ("seed1_accepted_dynbatch", BACK): "Transpose Conv/32 Transpose Relu",
    ("seed1_cardinal_static", BACK): "Transpose Gather Conv/32 Transpose",
    ("seed1_cardinal_dynbatch", BACK): "Transpose Gather Conv/32 Transpose",
    ("seed1_wrong_static", BACK): "Transpose Conv/128 Transpose",
    ("seed1_wrong_dynbatch", BACK): "Transpose Conv/128 Transpose",
    ("seed1_eight_channels", BACK): "Reshape Conv/2 Transpose",
    ("seed1_grouped_reference", FORWARD): "Transpose Conv/128 Reshape ReduceSum Reshape Transpose",
}


def model(name: str) -> onnx.ModelProto:
    return onnx.load(SEEDS / f"{name}.onnx")


def data(name: str) -> tuple[dict[str, Array], Array]:
    """TensorFlow's input by the model's name for it, and TensorFlow's output."""
    arrays = np.load(SEEDS / f"{name}.npz")
    return {model(name).graph.input[0].name: arrays["x"]}, arrays["y"]


def output(proto: onnx.ModelProto, name: str, level: str = "all") -> Array:
    (y,) = run(proto, data(name)[0], level).values()
    return y


def assert_tensorflows(proto: onnx.ModelProto, name: str) -> None:
    """The model gives TensorFlow's output, to the rounding of sums of as many products as its convolutions have."""
    expected = data(name)[1]
    sizes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    terms = [np.prod(sizes[node.input[1]][1:]) for node in proto.graph.node if node.op_type == "Conv"]
    allowed = 2.0**-23 * (sum(terms) + 2) * np.abs(expected).max()
    for level in LEVELS:
        y = output(proto, name, level)
        assert y.shape == expected.shape
        assert y.dtype == expected.dtype
        assert np.abs(y.astype(np.float64) - expected).max() <= allowed


def attribute(node: onnx.NodeProto, name: str) -> object:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def conv(proto: onnx.ModelProto) -> tuple[onnx.NodeProto, Array]:
    """The only Conv and its weight."""
    (node,) = [node for node in proto.graph.node if node.op_type == "Conv"]
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == node.input[1]]
    return node, np.asarray(onnx.numpy_helper.to_array(weight))


def test_all_pairs_are_here() -> None:
    assert len(NAMES) == 17
    assert {path.stem for path in SEEDS.glob("*.npz")} == set(NAMES)
    assert {name for name, _ in BECOMES} < set(NAMES)
    readme = (SEEDS / "README.md").read_text()
    assert [name for name in NAMES if name not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_program_computes_what_tensorflow_computed(name: str) -> None:
    assert_tensorflows(model(name), name)


@pytest.mark.parametrize("rule", [FORWARD, BACK])
@pytest.mark.parametrize("name", NAMES)
def test_what_each_program_becomes_computes_what_tensorflow_computed(name: str, rule: str) -> None:
    proto = model(name)
    if (name, rule) not in BECOMES:
        declines(proto, rule, "")
        return
    shape = data(name)[0].popitem()[1].shape
    batches = (1, 3) if name.endswith("dynbatch") else shape[:1]
    where = [{proto.graph.input[0].name: (batch, *shape[1:])} for batch in batches]
    passed = check(proto, rule, becomes=BECOMES[name, rule], sizes=where)
    assert_tensorflows(passed.after, name)


@pytest.mark.parametrize("name", NAMES)
def test_regrouped_programs_compute_what_tensorflow_computed(name: str) -> None:
    """After the others, since those leave the grouped convolutions; where there is a factor of 2."""
    current = Model.load(model(name))
    current, _, _ = sweep(current, Step(all_passes()[BACK]), {})
    before = text(current.to_proto())
    regrouped, applied, attempts = sweep(current, Step(all_passes()[REGROUP], {"factor": 2}), {})
    reasons = {attempt.reason for attempt in attempts}
    if not applied:
        assert reasons <= {
            "It is dense (group 1): there are no groups to merge.",
            "Its 3 groups are no multiple of regroup.factor 2.",
        }
        assert regrouped.to_bytes() == current.to_bytes()
        return
    assert text(regrouped.to_proto()) != before
    assert_tensorflows(regrouped.to_proto(), name)


# --- row by row ---


def test_seed0_is_and_stays_a_depthwise_map_of_three_channels_to_twelve() -> None:
    name = "seed0_depthwise_multiplier"
    node, weight = conv(model(name))
    assert (attribute(node, "group"), weight.shape) == (3, (12, 1, 5, 5))
    y = output(model(name), name)
    centre = y[0, y.shape[1] // 2, y.shape[2] // 2]
    expected = [whole + tenth / 10 for whole in (2, 3, 4) for tenth in range(4)]
    np.testing.assert_allclose(centre, expected, rtol=1e-6)
    assert "depthwise already" in declines(model(name), FORWARD, "depthwise already")[0].reason
    declines(model(name), BACK, "No sum over channels follows")
    declines(model(name), REGROUP, "No divisor of its 3 groups makes 1 in, 4 out", {"block": 8})


@pytest.mark.parametrize("shapes", ["static", "dynbatch"])
def test_seed1_accepted_becomes_32_groups_of_moved_weights(shapes: str) -> None:
    name = f"seed1_accepted_{shapes}"
    wide = conv(model(name))[1]
    passed = check(model(name), BACK, safety=Safety.EXACT, sizes=one_input(name))
    node, weight = conv(passed.after)
    assert attribute(node, "group") == 32
    assert weight.shape == (128, 4, *wide.shape[2:])
    # y[4g + q] = Σ_i of wide channel (4g + i)·4 + q.
    moved = wide.reshape(32, 4, 4, *wide.shape[2:]).transpose(0, 2, 1, 3, 4).reshape(weight.shape)
    assert weight.tobytes() == np.ascontiguousarray(moved).tobytes()


@pytest.mark.parametrize("shapes", ["static", "dynbatch"])
@pytest.mark.parametrize("how", ["gather", "reshape", "auto"])
def test_seed1_cardinal_becomes_a_channel_shuffle_and_32_groups(shapes: str, how: str) -> None:
    name = f"seed1_cardinal_{shapes}"
    passed = check(model(name), BACK, {"shuffle": how}, safety=Safety.EXACT, sizes=one_input(name))
    assert attribute(conv(passed.after)[0], "group") == 32
    assert conv(passed.after)[1].shape[:2] == (128, 4)
    if how == "reshape":
        assert passed.text == "Transpose Reshape Transpose Reshape Conv/32 Transpose"
    else:
        # Input channel a·32 + g belongs to group g.
        order = passed.initializer("shuffle/indices")
        assert order.tolist() == [a * 32 + g for g in range(32) for a in range(4)]
    assert_tensorflows(passed.after, name)


@pytest.mark.parametrize("shapes", ["static", "dynbatch"])
def test_seed1_wrong_becomes_a_depthwise_conv_with_summed_filters_and_never_32_groups(shapes: str) -> None:
    name = f"seed1_wrong_{shapes}"
    wide = conv(model(name))[1]
    passed = check(model(name), BACK, safety=Safety.ROUNDING, sizes=one_input(name))
    node, weight = conv(passed.after)
    assert attribute(node, "group") == 128
    assert weight.shape == (128, 1, *wide.shape[2:])
    summed = wide.reshape(128, 4, 1, *wide.shape[2:]).astype(np.float64).sum(1)
    np.testing.assert_allclose(weight, summed, rtol=2.0**-24)


def test_seed1_eight_channels_gives_the_printed_numbers() -> None:
    name = "seed1_eight_channels"
    passed = check(model(name), BACK, safety=Safety.EXACT, becomes=BECOMES[name, BACK])
    for proto in (passed.before, passed.after):
        assert data(name)[0].popitem()[1].reshape(-1).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert output(proto, name).reshape(-1).tolist() == [6, 6, 6, 6, 22, 22, 22, 22]


def test_seed1_grouped_reference_goes_forward_and_comes_back() -> None:
    name = "seed1_grouped_reference"
    node, weight = conv(model(name))
    assert attribute(node, "group") == 32
    assert attribute(node, "strides") == [2, 2]
    there = check(model(name), FORWARD, safety=Safety.EXACT, sizes=one_input(name))
    assert attribute(conv(there.after)[0], "group") == 128
    back = check(there.after, BACK, safety=Safety.EXACT, becomes="Transpose Conv/32 Transpose", sizes=one_input(name))
    again, same = conv(back.after)
    assert again.attribute == node.attribute
    assert same.tobytes() == weight.tobytes()


def one_input(name: str) -> list[dict[str, tuple[int, ...]]]:
    return [{key: array.shape for key, array in data(name)[0].items()}]


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        # y[0, row] at every row: positions by channels.
        ("seed2_conv2d", [[9, 63], [9, 81]]),
        ("seed2_depthwise", [[0, 36, 9, 27], [0, 54, 9, 27]]),
        ("seed3_regular_ones", [[value, value] for value in (15, 27, 39, 51, 63, 75, 87, 99)]),
        ("seed3_separable_ones", [[value, value] for value in (15, 27, 39, 51, 63, 75, 87, 99)]),
    ],
)
def test_the_printed_numbers(name: str, columns: list[list[int]]) -> None:
    y = output(model(name), name)
    assert len(y) == 1
    assert [row.tolist() for row in y[0]] == [columns] * y.shape[1]
    for rule in (FORWARD, BACK):
        declines(model(name), rule, "")


def test_seed2_rate2_is_a_dilated_depthwise_map_that_stays() -> None:
    node, weight = conv(model("seed2_depthwise_rate2"))
    assert attribute(node, "dilations") == [2, 2]
    assert attribute(node, "group") == weight.shape[0] // 4
    declines(model("seed2_depthwise_rate2"), FORWARD, "It is depthwise already")
    declines(model("seed2_depthwise_rate2"), BACK, "No sum over channels follows")


def test_seed3_separable_and_regular_differ_where_the_weights_are_random() -> None:
    """Fusing and splitting them comes with passes of their own; today's decline, each with a sentence."""
    regular, separable = (output(model(name), name) for name in ("seed3_regular_ones", "seed3_separable_ones"))
    assert np.array_equal(regular, separable)
    first, second = (output(model(f"seed3_{kind}_random"), f"seed3_{kind}_random") for kind in ("regular", "separable"))
    assert first.shape == second.shape
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("seed3")])
def test_seed3_declines_today(name: str) -> None:
    declines(model(name), BACK, "No sum over channels follows")
    declines(model(name), FORWARD, "It is dense (group 1), not grouped.")
    if name == "seed3_separable_multiplier2":  # 128 groups of 1 in, 2 out: off the fast path, so regroup has its say
        check(model(name), REGROUP, {"block": 16}, safety=Safety.FINITE, sizes=one_input(name))
        return
    declines(model(name), REGROUP, "It is dense (group 1): there are no groups to merge.", {"block": 16})
