"""L5: NaN, infinity, zeros of both signs, denormal numbers, and sizes that nobody tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewriter.bindings import find_bindings
from rewriter.equivalence import AuditOptions, edges
from rewriter.equivalence.cut import Runner
from rewriter.equivalence.edge_bounds import bounds_of, is_bounded, is_gentle
from rewriter.equivalence.edges import Edges, compare_on_edges, region_edges, summed_flags
from rewriter.equivalence.exact import LARGE, Exchange
from rewriter.equivalence.oracle import Oracle, OracleFailed
from rewriter.equivalence.proving import exchange_of
from rewriter.equivalence.records import Grade, failed, not_applicable, passed
from rewriter.equivalence.regions import Diff
from rewriter.equivalence.static import StaticResult
from rewriter.equivalence.verdict import audit_verdict, region_verdict
from rewriter.model import Model
from rewriter.report.text_audit import audit_blocks, edge_text, region_details
from rewriter.session import Runtime, SessionFailed
from rewriter.shapes import bind
from test_equivalence import edge_cases as ec
from test_equivalence import rewrites as rw
from test_equivalence.models import node, random
from test_equivalence.nets import Array, audited, caught, chain, net

ALL_SAME = {"nonfinite": "same", "signed_zero": "same", "denormals": "same"}


def exchange(pair: ec.Pair) -> Exchange:
    a, b = map(Model.load, pair)
    diffs = [Diff(a, b, (found.bound, bind(b, found.shapes))) for found in find_bindings(a)]
    (region,) = diffs[0].regions()
    found = exchange_of(region, diffs, AuditOptions())
    assert found is not None
    return found


def scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def on_edges(pair: ec.Pair, grade: Grade | None = None, products: int = 0) -> Edges:
    found = exchange(pair)
    rng = np.random.default_rng(0)
    captured = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in found.shapes[0].items()}
    return compare_on_edges(found, [captured], products, grade)


WRONG: dict[str, tuple[ec.Pair, dict[str, Any], str]] = {
    "epsilon": (ec.epsilon_added_and_taken_away(), {}, "Fed denormal numbers, 't' differs by"),
    "nothing in the batch": (ec.nothing_in_the_batch(), {}, "At N = 0: The original runs, the rewritten model does"),
    "squeeze": (ec.squeezed_without_axes(), {}, "At W = 1: The original runs, the rewritten model does not"),
    "another shape": (
        ec.last_eight(),
        {},
        "At W = 1: The output 'y' is float32 [2, 3, 0] instead of float32 [2, 3, 1].",
    ),
    "frozen batch": (
        (ec.frames(-1), ec.frames(1)),
        {"input_shapes": {"x": (4, 8, 8, 6)}},
        "At N = 8: The original runs, the rewritten model does not",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_only_the_edges_show(name: str) -> None:
    pair, options, phrase = WRONG[name]
    assert audited(*pair, **options).verdict == "equivalent"  # every other level lets it pass
    result = audited(*pair, full=True, **options)
    assert (result.verdict, caught(result)) == ("different", "L5")
    assert phrase in result.reason


def test_weights_that_only_moved_keep_nan_and_infinity_where_they_were() -> None:
    before = net(bias=False, batch="N")
    for after in (rw.split_concat(before, "t"), rw.depthwise_summed(before, "t", (-1, 8, 6, 7))):
        result = audited(before, after, full=True)
        assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason
        assert result.regions[0].flags["nonfinite"] == result.regions[0].flags["signed_zero"] == "same"
        assert result.regions[0].flags["denormals"] in ("same", "differs within rounding")
        assert result.flags == result.regions[0].flags | {"sizes": "N = 2, N = 0"}
        assert {level.level for level in result.regions[0].levels} == {"L1", "L2", "L3", "L5"}


def test_inserted_zeros_hold_for_finite_inputs_only() -> None:
    before = net(bias=False)
    result = audited(before, rw.regrouped(before, "t", 1), full=True)
    assert (result.verdict, result.grade) == ("equivalent", "finite"), result.reason
    assert result.flags["nonfinite"] == "differs"
    assert "NaN comes out elsewhere ('t', " in result.regions[0].levels[-1].detail
    text = "\n".join(map(str, audit_blocks(result, verbose=True)))
    assert region_details(1, result.regions[0]) in text
    assert "Edges (L5): holds for finite inputs only (NaN or infinity come out elsewhere in 1 of 1 region)." in text
    assert "  nonfinite differs, signed_zero same, denormals " in region_details(1, result.regions[0])


def test_nothing_of_it_where_nobody_asks() -> None:
    result = audited(net(batch="N"), rw.regrouped(net(batch="N"), "t", 1))
    assert result.flags == result.regions[0].flags == {}
    assert [level.level for level in result.levels] == ["L0", "L4"]
    assert not any(str(block).startswith("Edges") for block in audit_blocks(result, verbose=True))


@pytest.mark.parametrize(("pair", "what"), [(ec.through_a_clip(), "infinity"), (ec.without_nan(), "NaN")])
def test_nan_and_infinity_made_numbers(pair: ec.Pair, what: str) -> None:
    found = on_edges(pair, "exact")
    assert found.result.outcome == "fail"
    assert f"Weights only moved, but fed {what}, 't' is NaN or infinite at other places" in found.result.detail
    assert found.flags["nonfinite"] == "differs"
    others: tuple[Grade | None, ...] = ("finite", "rounding", None)
    for grade in others:
        found = on_edges(pair, grade)
        assert (found.result.outcome, found.flags["nonfinite"]) == ("pass", "differs")
    result = audited(*pair, full=True)
    assert (result.verdict, result.flags["nonfinite"]) == ("approximate", "differs")


def smeared(monkeypatch: pytest.MonkeyPatch, side: str, *, deployed_only: bool) -> None:
    """Make the kernels of one side spread NaN over the whole output, as one that works on whole tiles does."""

    def spread(found: Mapping[str, Array], cut_side: str) -> dict[str, Array]:
        bad = cut_side == side
        return {
            name: np.full_like(value, np.nan) if bad and np.isnan(value).any() else value
            for name, value in found.items()
        }

    plain: Any = Runner.plain
    deployed: Any = Runner.deployed
    monkeypatch.setattr(Runner, "deployed", lambda self, *a: [spread(one, self.cut.side) for one in deployed(self, *a)])
    if not deployed_only:
        monkeypatch.setattr(Runner, "plain", lambda self, *a: spread(plain(self, *a), self.cut.side))


def test_kernels_that_spread_nan_are_not_held_against_the_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    smeared(monkeypatch, "after", deployed_only=True)
    found = on_edges((net(bias=False), rw.split_concat(net(bias=False), "t")), "exact")
    assert (found.result.outcome, found.flags["nonfinite"]) == ("pass", "differs")
    assert "as the kernels that run have it: by the operators' definitions both are the same" in found.result.detail


def test_what_no_definition_decides_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    smeared(monkeypatch, "after", deployed_only=True)

    def refuse(*given: object) -> Oracle:
        raise OracleFailed("no such operator")

    monkeypatch.setattr(edges, "Oracle", refuse)
    found = on_edges((net(bias=False), rw.split_concat(net(bias=False), "t")), "exact")
    assert (found.result.outcome, found.flags["nonfinite"]) == ("pass", "differs")
    assert "it is open whether kernels or the rewrite do that (no such operator)" in found.result.detail


def test_an_original_that_spreads_nan_itself_is_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the original's runs, deployed or not, is what it computes."""
    pair = net(bias=False), rw.split_concat(net(bias=False), "t")
    smeared(monkeypatch, "before", deployed_only=True)
    assert on_edges(pair, "exact").flags["nonfinite"] == "same"
    smeared(monkeypatch, "after", deployed_only=True)
    assert on_edges(pair, "exact").flags["nonfinite"] == "same"
    monkeypatch.undo()
    smeared(monkeypatch, "before", deployed_only=False)
    assert on_edges(pair, "exact").flags["nonfinite"] == "differs"


def test_infinite_weights_say_nothing_of_infinite_inputs() -> None:
    before = net(bias=False)
    weight = rw.weight_of(before, "w").copy()
    weight[0, 0, 0, 0] = np.inf
    rw.set_weight(before, "w", weight)
    found = on_edges((before, rw.split_concat(before, "t")), "exact")
    assert (found.flags["nonfinite"], found.flags["denormals"]) == ("not compared", "not compared")


def test_where_no_output_is_zero_signs_are_not_compared() -> None:
    found = on_edges((net(), rw.split_concat(net(), "t")))
    assert (found.result.outcome, found.flags["signed_zero"]) == ("pass", "not compared")
    assert "no output is zero where all inputs are" in found.result.detail


def test_what_reaches_no_output_is_no_agreement() -> None:
    weights: dict[str, Array] = {"w": np.zeros((2, 3), np.float32), "no": np.zeros((), np.float32)}
    before = chain([node("Greater", ["x", "no"], ["c"]), node("Where", ["c", "no", "no"], ["y"])], weights, [2, 3])
    after = chain([node("Less", ["x", "no"], ["d"]), node("Where", ["d", "no", "no"], ["y"])], weights, [2, 3])
    found = on_edges((before, after))
    assert (found.result.outcome, found.flags["nonfinite"]) == ("pass", "not compared")


def test_another_sign_of_zero_is_a_flag_only() -> None:
    weights: dict[str, Array] = {"minus": scalar(-1), "zero": scalar(0)}
    before = chain([node("Mul", ["x", "minus"], ["y"])], {"minus": weights["minus"]}, [2, 3, 4])
    after = chain([node("Sub", ["zero", "x"], ["y"])], {"zero": weights["zero"]}, [2, 3, 4])
    result = audited(before, after, full=True)
    assert result.verdict == "equivalent", result.reason
    assert result.flags == ALL_SAME | {"signed_zero": "differs"}
    assert "zeros of another sign in 1 of 1 region" in edge_text(result)


def scaled_behind(scale: float, offset: float = 0.0) -> ec.Pair:
    """A convolution and a scale, against the convolution with scaled weights."""
    w, s = random(4, 3, 3, 3), scalar(scale)
    x = [2, 3, 5, 6]
    before = chain([node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "s"], ["y"])], {"w": w, "s": s}, x)
    after = chain([node("Conv", ["x", "ws"], ["y"])], {"ws": w * s + np.float32(offset)}, x)
    return before, after


def test_what_a_scale_makes_of_lost_bits_is_rounding() -> None:
    """A denormal result is off by half the smallest number; ten thousand times that is no error of the rewrite."""
    found = on_edges(scaled_behind(1e4))
    assert (found.result.outcome, found.flags["denormals"]) == ("pass", "differs within rounding"), found.result.detail
    assert on_edges(scaled_behind(1e4, offset=1.0)).result.outcome == "fail"


def test_large_regions_are_held_to_what_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No evaluation in float64 there; what denormal numbers lose is small enough without."""
    large = replace(exchange(scaled_behind(1e4)), elements=(LARGE + 1,))
    monkeypatch.setattr(edges, "bounds_of", None)
    captured: Array = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
    assert compare_on_edges(large, [{"x": captured}], 27, None).result.outcome == "pass"
    wrong = replace(exchange(scaled_behind(1e4, offset=1e30)), elements=(LARGE + 1,))
    assert compare_on_edges(wrong, [{"x": captured}], 27, None).result.outcome == "fail"


def test_the_bound_counts_what_operators_lose_and_multiply() -> None:
    """At the last few bits no error is relative: what the convolution loses is all there is, times the scale."""
    found = exchange(scaled_behind(1e4))
    values = np.random.default_rng(0).integers(-9, 10, (2, 3, 5, 6)) * 2.0**-149
    feeds: dict[str, Array] = {"x": values.astype(np.float32)}
    old, new = (side.plain(feeds, side.cut.weights) for side in (found.before, found.after))
    bounds = bounds_of(found.before, found.after, feeds, old, 27)
    assert bounds is not None
    assert not bounds.flushed
    error = np.abs(old["y"].astype(np.float64) - new["y"].astype(np.float64))
    assert error.max() > 1e4 * 2.0**-150
    assert (error <= bounds.allowed["y"]).all()
    assert bounds.allowed["y"].max() < 1e6 * 2.0**-149


def flushing(monkeypatch: pytest.MonkeyPatch, sides: tuple[str, ...]) -> None:
    """Make the runtime take denormal numbers for zero, as some devices do."""

    def flush(values: Mapping[str, Array]) -> dict[str, Array]:
        small = float(np.finfo(np.float32).tiny)
        return {name: np.where(np.abs(value) < small, np.float32(0), value) for name, value in values.items()}

    plain: Any = Runner.plain
    deployed: Any = Runner.deployed

    def run_plain(self: Runner, feeds: Mapping[str, Array], weights: Mapping[str, Array]) -> dict[str, Array]:
        bad = self.cut.side in sides
        return flush(plain(self, flush(feeds), weights)) if bad else plain(self, feeds, weights)

    def run_deployed(self: Runner, feeds: Any, weights: Mapping[str, Array]) -> list[dict[str, Array]]:
        bad = self.cut.side in sides
        return [flush(one) for one in deployed(self, [flush(f) for f in feeds] if bad else feeds, weights)]

    monkeypatch.setattr(Runner, "plain", run_plain)
    monkeypatch.setattr(Runner, "deployed", run_deployed)


def test_a_runtime_that_flushes_denormal_numbers_is_no_error_of_the_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = scaled_behind(1e3)
    flushing(monkeypatch, ("before",))  # the original itself shows it
    found = on_edges(pair)
    assert (found.result.outcome, found.flags["denormals"]) == ("pass", "differs within rounding")
    assert "the runtime takes them for zero" in found.result.detail


def test_a_rewrite_that_flushes_denormal_numbers_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    flushing(monkeypatch, ("after",))
    found = on_edges(scaled_behind(1e3))
    assert (found.result.outcome, found.flags["denormals"]) == ("fail", "differs")
    assert "Fed denormal numbers" in found.result.detail


def behind_a_tanh(size: float, factor: float | None = None) -> ec.Pair:
    """Tanh of a convolution, and the same + `size`; with a factor, + so many times the convolution, `size` at most."""
    weights: dict[str, Array] = {"w": random(4, 3, 3, 3), "size": scalar(size), "less": scalar(-size)}
    first = [node("Conv", ["x", "w"], ["c1"]), node("Tanh", ["c1"], ["d"])]
    before = chain([node("Conv", ["x", "w"], ["c"]), node("Tanh", ["c"], ["y"])], {"w": weights["w"]}, [1, 3, 5, 6])
    if factor is None:
        return before, chain([*first, node("Add", ["d", "size"], ["y"])], weights, [1, 3, 5, 6])
    more = [node("Mul", ["c1", "factor"], ["m"]), node("Clip", ["m", "less", "size"], ["k"])]
    return before, chain(
        [*first, *more, node("Add", ["d", "k"], ["y"])], weights | {"factor": scalar(factor)}, [1, 3, 5, 6]
    )


def test_without_a_bound_zeros_have_to_give_what_they_gave() -> None:
    found = on_edges(behind_a_tanh(1e-34))
    assert found.result.outcome == "fail"
    assert "Fed zeros, 'y' differs by 1e-34" in found.result.detail


def test_without_a_bound_a_large_difference_at_small_numbers_refutes() -> None:
    """Behind a Tanh nothing is certified; 1e-3 for nothing is no rounding all the same."""
    found = on_edges(behind_a_tanh(1e-3, factor=2.0**126))
    assert found.result.outcome == "fail"
    assert "Fed denormal numbers, 'y' differs by 0.001" in found.result.detail
    found = on_edges(behind_a_tanh(1e-36, factor=2.0**20))  # far from any number that is not tiny itself
    assert (found.result.outcome, found.flags["denormals"]) == ("pass", "differs")


def test_a_quotient_of_small_numbers_decides_nothing() -> None:
    """What is lost in denormal numbers is a large part of them, and so of their quotient: no error of the rewrite."""
    w, three = random(4, 3, 1, 1), scalar(3)
    sums = [node("ReduceSum", ["c"], ["s"]), node("Div", ["c", "s"], ["y"])]
    before = chain([node("Conv", ["x", "w"], ["c"]), *sums], {"w": w}, [1, 3, 5, 6])
    nodes = [node("Conv", ["x", "w"], ["c0"]), node("Mul", ["c0", "three"], ["c1"])]
    nodes += [node("ReduceSum", ["c1"], ["s1"]), node("Div", ["c1", "s1"], ["y"])]
    after = chain(nodes, {"w": w, "three": three}, [1, 3, 5, 6])
    cut = exchange((before, after)).before.cut
    assert not is_gentle(cut)
    assert not is_bounded(cut)
    linear = exchange(scaled_behind(2.0)).before.cut
    assert is_gentle(linear)
    assert is_bounded(linear)
    assert on_edges((before, after)).result.outcome == "pass"


def test_a_region_that_gives_another_shape_or_does_not_run_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed: Any = Runner.deployed

    def turned(self: Runner, *given: Any) -> list[dict[str, Array]]:
        found = deployed(self, *given)
        return [{n: v.T if self.cut.side == "after" else v for n, v in one.items()} for one in found]

    monkeypatch.setattr(Runner, "deployed", turned)
    found = on_edges((net(), rw.regrouped(net(), "t", 1)))
    assert "instead of float32 [2, 8, 6, 7]" in found.result.detail
    monkeypatch.undo()
    original: Callable[..., list[dict[str, Array]]] = Runner.deployed
    region = exchange((net(), rw.regrouped(net(), "t", 1)))
    feeds = {"a": np.zeros((2, 8, 6, 7), np.float32)}

    def refuses(self: Runner, *given: Any) -> list[dict[str, Array]]:
        if self.cut.side == "after":
            raise SessionFailed("No.")
        return original(self, *given)

    monkeypatch.setattr(Runner, "deployed", refuses)
    assert compare_on_edges(region, [feeds], 0, None).result.outcome == "fail"


def test_what_cannot_be_fed_is_not_applicable() -> None:
    region = exchange((net(), rw.regrouped(net(), "t", 1)))
    assert compare_on_edges(region, [], 0, None).result.outcome == "not applicable"
    bad = {"a": np.full((2, 8, 6, 7), np.nan, np.float32)}
    assert compare_on_edges(region, [bad], 0, None) == compare_on_edges(region, [], 0, None)


def test_tf32_decides_nothing_at_the_edges() -> None:
    region = exchange((net(), rw.regrouped(net(), "t", 1)))
    captured = [{"a": np.ones((2, 8, 6, 7), np.float32)}]
    static = StaticResult(passed("L1", "Fine."), "finite")
    given: tuple[Any, ...] = (region, [passed("L3", "Fine.")], captured, static)
    assert region_edges(AuditOptions(full=True), *given) is not None
    assert region_edges(AuditOptions(full=True, runtime=Runtime("cuda")), *given) is None
    assert region_edges(AuditOptions(), *given) is None


def test_the_verdict_of_a_region_and_of_the_whole() -> None:
    outcomes: dict[Any, Any] = {"L1": "pass", "L2": "pass", "L3": "pass", "L5": "fail"}
    assert region_verdict(outcomes, None, "pass") == ("different", "L5 refutes it.")
    assert region_verdict(outcomes | {"L5": "not applicable"}, None, "pass")[0] == "equivalent"
    given: Any = (passed("L0", "Sound."), [("equivalent", "exact", "pass")], passed("L4", "Fine."))
    verdict = audit_verdict(*given, identical=False, ran=True, sizes=failed("L5", "At N = 2: no."))
    assert verdict == ("different", None, "At N = 2: no.")
    assert audit_verdict(*given, identical=False, ran=True, sizes=not_applicable("L5", "No."))[0] == "equivalent"


def test_the_flags_of_the_whole_claim_the_least() -> None:
    rough = {"nonfinite": "differs", "signed_zero": "not compared", "denormals": "differs within rounding"}
    assert summed_flags([ALL_SAME, rough, {}], None) == rough
    assert summed_flags([{}], None) == {}
    assert summed_flags([ALL_SAME], (passed("L5", "Fine."), "N = 2")) == ALL_SAME | {"sizes": "N = 2"}
    assert summed_flags([{"denormals": "differs"}], None)["nonfinite"] == "not compared"


def test_float16_has_edges_of_its_own() -> None:
    before = ec.halves("N")
    result = audited(before, rw.split_concat(before, "t"), full=True)
    assert (result.verdict, result.grade) == ("equivalent", "exact"), result.reason
    assert result.flags["nonfinite"] == "same"


def test_a_flag_is_part_of_the_record() -> None:
    result = audited(net(bias=False), rw.split_concat(net(bias=False), "t"), full=True)
    written = result.to_dict()
    assert written["flags"] == written["regions"][0]["flags"]
    assert written["flags"].keys() == ALL_SAME.keys()
