"""Among many rewrites the wrong ones are found, by region or by bisection, and they alone are dropped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest

import graphs
import rewriter.blame
import rewriter.choose
import rewriter.whole_timing
from culprits import Invalid, OneWeightOff, Overflowing, ReadsTheFormer, Scaled, chain
from rewriter import equivalence
from rewriter.activations import capture
from rewriter.base import Pass
from rewriter.bisect import find_culprits
from rewriter.blame import find_blame
from rewriter.cutting import Cutter
from rewriter.engine import Outcome, optimize, rewrite
from rewriter.equivalence import Audit, AuditOptions
from rewriter.equivalence.probe import WholeProbe
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Step, sweep
from rewriter.registry import pass_named
from rewriter.remake import remade
from rewriter.session import Runtime
from rewriter.timing import Contender, Timing
from timings import timing

OPTIONS = RunOptions()


@pytest.fixture
def all_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rewrite, and every set of them, is measured to be faster."""

    def compare(_original: Contender, some: Sequence[Contender], *_: Any, **__: Any) -> list[Timing]:
        return [timing(1.5, "FASTER") for _ in some]

    monkeypatch.setattr(rewriter.choose, "compare", compare)
    monkeypatch.setattr(rewriter.whole_timing, "compare", compare)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of probes of each search."""
    counts: list[int] = []

    def counted(count: int, fails: Callable[[frozenset[int]], bool], most: int) -> Any:
        found = find_culprits(count, fails, most)
        counts.append(found.probes)
        return found

    monkeypatch.setattr(rewriter.blame, "find_culprits", counted)
    return counts


def asked(*rules: Pass, length: int = 5) -> Outcome:
    """What `rewrite` makes of a chain; nothing may be written when something is wrong."""
    model = chain(length)
    outcome = rewrite(model, [Step(rule) for rule in rules], OPTIONS)
    assert outcome.changed == (outcome.model.to_bytes() != model.to_bytes())
    return outcome


def optimized(*rules: Pass, length: int = 5) -> Outcome:
    return optimize(chain(length), {rule.name: rule for rule in rules}, {}, OPTIONS)


def sites(outcome: Outcome, *kinds: str) -> set[str]:
    return {entry.site for entry in outcome.attempts if entry.outcome in kinds}


def reason(outcome: Outcome, site: str) -> str:
    (found,) = [entry.reason for entry in outcome.attempts if entry.site == site and entry.outcome != "declined"]
    return found


def verified(outcome: Outcome, *kept: str, length: int = 5) -> None:
    """The model has exactly these rewrites, and an audit that knows nothing of the search accepts it."""
    convs = {node.output[0].removesuffix("/scaled") for node in outcome.model.nodes if node.op_type == "Conv"}
    scaled = {node.output[0] for node in outcome.model.nodes if node.op_type == "Div"}
    assert (convs, scaled) == ({f"c{number}" for number in range(1, length + 1)}, set(kept))
    assert equivalence.audit(chain(length), outcome.model, AuditOptions()).verdict == "equivalent"


def test_the_rewrites_that_the_others_are_built_on_are_right() -> None:
    outcome = asked(Scaled())
    assert (outcome.verdict, outcome.grade) == ("equivalent", "exact")
    verified(outcome, "c1", "c2", "c3", "c4", "c5")


def test_one_that_l1_sees_is_named_by_its_region_without_a_search(probes: list[int]) -> None:
    outcome = asked(OneWeightOff({"c2"}))
    assert (outcome.verdict, outcome.changed, probes) == ("different", False, [])
    assert sites(outcome, "different") == {"c2"}
    assert sites(outcome, "withheld") == {"c1", "c3", "c4", "c5"}
    assert "input channel 2, tap offset [0, 1]" in reason(outcome, "c2")
    assert outcome.reason.endswith("To blame: one-weight-off at 'c2'; without it the other 4 rewrites pass the audit.")
    assert reason(outcome, "c1") == (
        "Found equivalent (exact) without what was dropped, but not written: exactly these passes were asked for."
    )


@pytest.mark.usefixtures("all_faster")
def test_optimize_drops_it_and_keeps_the_rest() -> None:
    outcome = optimized(OneWeightOff({"c2"}))
    assert (outcome.verdict, outcome.changed) == ("equivalent", True)
    assert sites(outcome, "different") == {"c2"}
    verified(outcome, "c1", "c3", "c4", "c5")
    assert reason(outcome, "c1").endswith("Verified again, without those that did not pass the audit.")


@pytest.mark.usefixtures("all_faster")
def test_what_is_left_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(["FASTER", "NOISE", "NOISE"])  # in doubt it is timed once more

    def compare(*_: Any, **__: Any) -> list[Timing]:
        return [timing(1.5, next(times))]

    monkeypatch.setattr(rewriter.whole_timing, "compare", compare)
    outcome = optimized(OneWeightOff({"c2"}))
    assert not outcome.changed
    assert sites(outcome, "different") == {"c2"}
    assert "was not measured faster" in outcome.reason
    assert not list(times)


def test_one_that_only_the_whole_model_sees_is_found_by_bisection(
    probes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriter.blame, "audit_rewritten", lambda *_: pytest.fail("L4 is enough to see it"))
    outcome = asked(Overflowing({"c3"}), length=9)
    assert outcome.audit is not None
    assert all(region.verdict == "equivalent" for region in outcome.audit.regions)  # no region explains it
    assert outcome.audit.levels[1].outcome == "fail"
    assert sites(outcome, "different") == {"c3"}
    assert sites(outcome, "withheld") == {f"c{number}" for number in (1, 2, 4, 5, 6, 7, 8, 9)}
    (count,) = probes
    assert count <= 6
    assert reason(outcome, "c3").startswith(
        f"With it alone the whole model does not pass (found by bisection in {count} audits of the whole model)."
    )


@pytest.mark.usefixtures("all_faster")
def test_optimize_drops_that_one_and_keeps_the_rest() -> None:
    outcome = optimized(Overflowing({"c3"}))
    assert sites(outcome, "different") == {"c3"}
    verified(outcome, "c1", "c2", "c4", "c5")


def test_several_that_only_the_whole_model_sees_are_all_found(probes: list[int]) -> None:
    outcome = asked(Overflowing({"c2", "c5"}))
    assert sites(outcome, "different") == {"c2", "c5"}
    assert sites(outcome, "withheld") == {"c1", "c3", "c4"}
    assert len(probes) == 1  # one search finds both


def test_two_that_are_right_alone_and_wrong_together() -> None:
    pair = Scaled({"c1"}), Overflowing({"c4"}, "c1")
    outcome = asked(*pair)
    assert sites(outcome, "different") == {"c1", "c4"}
    assert sites(outcome, "withheld") == {"c2", "c3", "c5"}
    assert "With it and 'c4' together the whole model does not pass, and without one of them it does" in reason(
        outcome, "c1"
    )
    assert "With it and 'c1' together" in reason(outcome, "c4")
    for other in ([pair[0]], [pair[1]], [pair[0], Overflowing({"c4"}, "c2")]):
        assert asked(*other).verdict == "equivalent"


@pytest.mark.usefixtures("all_faster")
def test_optimize_drops_those_two_and_keeps_the_rest() -> None:
    class Later(Overflowing):
        finishes = True  # asked when the other has had its turn

    outcome = optimized(Scaled({"c1", "c2"}), Later({"c4"}, "c1", {"c3", "c4"}))
    assert sites(outcome, "different") == {"c1", "c4"}
    verified(outcome, "c2", "c3")


def test_an_invalid_model_is_traced_to_what_makes_it_invalid() -> None:
    outcome = asked(Invalid({"c4"}))
    assert outcome.audit is not None
    assert not outcome.audit.regions  # nothing was compared
    assert sites(outcome, "different") == {"c4"}
    assert sites(outcome, "withheld") == {"c1", "c2", "c3", "c5"}


def in_one_region(outcome: Outcome) -> None:
    assert outcome.audit is not None
    assert ("c1", "c2") in {region.outputs for region in outcome.audit.regions}


def test_a_right_one_in_the_region_of_a_wrong_one_stays() -> None:
    outcome = asked(OneWeightOff({"c1"}, {"c1"}), ReadsTheFormer("c2", "c1", wrong=()))
    in_one_region(outcome)
    assert sites(outcome, "different") == {"c1"}
    assert sites(outcome, "withheld") == {"c2", "c3", "c4", "c5"}
    assert "With it alone the region does not pass (found by bisection in 2 audits of the region)." in reason(
        outcome, "c1"
    )


def test_one_of_which_nothing_leaves_the_region_is_suspected_too() -> None:
    outcome = asked(OneWeightOff({"c1"}, {"c1"}), ReadsTheFormer("c2", "c1", wrong=(), clean=True))
    assert outcome.audit is not None
    assert {region.outputs for region in outcome.audit.regions} == {("c2",), ("c3",), ("c4",), ("c5",)}
    assert sites(outcome, "different") == {"c1"}
    assert "c2" in sites(outcome, "withheld")


def test_where_the_region_cannot_be_cut_out_the_whole_model_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cutter, "pair", lambda _self, _region: None)
    outcome = asked(OneWeightOff({"c1"}, {"c1"}), ReadsTheFormer("c2", "c1", wrong=()))
    in_one_region(outcome)
    assert sites(outcome, "different") == {"c1"}
    assert "c2" in sites(outcome, "withheld")


def test_a_wrong_one_that_rests_on_a_right_one_goes_alone() -> None:
    outcome = asked(Scaled({"c1"}), ReadsTheFormer("c2", "c1", wrong={"c2"}, strictly=True))
    in_one_region(outcome)
    assert sites(outcome, "different") == {"c2"}
    assert "c1" in sites(outcome, "withheld")
    assert "with 'c1', which it is made from, it does" in reason(outcome, "c2")


def test_a_right_one_that_rests_on_a_wrong_one_falls_with_it_and_says_so() -> None:
    outcome = asked(OneWeightOff({"c1"}, {"c1"}), ReadsTheFormer("c2", "c1", wrong=(), strictly=True))
    in_one_region(outcome)
    assert sites(outcome, "different") == {"c1"}
    assert sites(outcome, "not_verified") == {"c2"}
    assert reason(outcome, "c2") == "It cannot be made without what was dropped: 'c1'."


def test_an_approximation_that_was_asked_for_is_made_again_as_it_was_measured() -> None:
    rng = np.random.default_rng(3)
    flat = np.linalg.qr(rng.standard_normal((72, 8)))[0].T * 0.5 ** np.arange(8)[:, None]  # one value after another
    model = Model.load(
        graphs.model(
            [
                graphs.node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
                graphs.node("Relu", ["a"], ["r"]),
                graphs.node("Conv", ["r", "v"], ["y"], pads=[1, 1, 1, 1]),
            ],
            [graphs.value("x", ["n", 8, 10, 10])],
            [graphs.value("y", ["n", 8, 10, 10])],
            [graphs.tensor("w", flat.reshape(8, 8, 3, 3).astype(np.float32)), graphs.weights("v", 8, 8, 3, 3)],
        )
    )
    sample = {"x": rng.standard_normal((2, 8, 10, 10)).astype(np.float32)}
    options = RunOptions(allow=frozenset({"approximate"}), samples=(sample,))
    rough = Step(pass_named("split-separable"), {"max-error": 0.2}, frozenset({"a"}))
    outcome = rewrite(model, [rough, Step(OneWeightOff({"y"}, {"y"}))], options)
    assert sites(outcome, "different") == {"y"}
    assert sites(outcome, "withheld") == {"a"}
    assert reason(outcome, "a").startswith("Found approximate without what was dropped, but not written")


def test_when_all_are_wrong_nothing_is_left_and_the_audit_says_why() -> None:
    outcome = asked(OneWeightOff({"c1", "c2"}), length=2)
    assert outcome.audit is not None
    assert sites(outcome, "different") == {"c1", "c2"}
    assert outcome.reason == outcome.audit.reason


def test_the_search_ends_where_it_may_take_no_more_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriter.blame, "MOST_PROBES", 1)
    outcome = asked(Overflowing({"c2"}))
    assert sites(outcome, "different") == {"c1", "c2"}  # one probe showed that it is one of the first two
    assert sites(outcome, "withheld") == {"c3", "c4", "c5"}
    assert "the search among 2 stopped after the 1 audits it may take: all of them were dropped" in reason(
        outcome, "c1"
    )


def test_where_the_original_runs_on_nothing_nobody_is_searched_for(probes: list[int]) -> None:
    model = Model.load(
        graphs.model(
            [graphs.node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), graphs.node("Relu", ["c"], ["y"])],
            [graphs.value("x", None)],
            [graphs.value("y", None)],
            [graphs.weights("w", 4, 4, 3, 3)],
        )
    )
    outcome = rewrite(model, [Step(Scaled())], OPTIONS)
    assert (outcome.verdict, probes) == ("not_verified", [])
    assert sites(outcome, "not_verified") == {"c"}


def applied(model: Model, rule: Pass, some: Collection[str] | None = None) -> Model:
    return sweep(model, Step(rule, {}, None if some is None else frozenset(some)), {})[0]


def test_a_probe_of_the_whole_model_agrees_with_the_audit() -> None:
    model = chain(3)
    options = AuditOptions()
    wrong, right = applied(model, Overflowing({"c2"})), applied(model, Scaled())
    audited: Audit = equivalence.audit(model, wrong, options)
    probe = WholeProbe(model, audited, options)
    assert probe.fails(wrong) == audited.levels[1].detail
    assert not probe.fails(right)
    assert not probe.fails(model)
    assert probe.fails(applied(model, OneWeightOff({"c1"})))
    assert "checker" in probe.fails(applied(model, Invalid({"c3"})))


def test_where_only_the_runs_as_deployed_fail_they_are_what_is_explained(probes: list[int]) -> None:
    model = chain(3)
    wrong, done, _ = sweep(model, Step(OneWeightOff({"c2"})), {})
    fine = equivalence.audit(model, applied(model, Scaled()), AuditOptions())
    deployed = equivalence.audit(model, wrong, AuditOptions())
    audit = fine.model_copy(update={"verdict": "different", "deployed": deployed})
    blamed = find_blame(model, wrong, done, audit, OPTIONS, lambda found: found.accepted, lambda *_: None)
    assert [entry.done.rewrite.site for entry in blamed] == ["c2"]
    assert probes == []  # a region of theirs names it


def test_made_again_they_are_the_same_and_a_subset_is_what_it_says() -> None:
    model = chain(4)
    whole, done, _ = sweep(model, Step(Scaled()), {})
    again, made = remade(model, done, OPTIONS)
    assert again.to_bytes() == whole.to_bytes()
    assert [entry.rewrite.site for entry in made] == ["c1", "c2", "c3", "c4"]
    some, made = remade(model, [done[0], done[2]], OPTIONS)
    assert some.to_bytes() == applied(model, Scaled(), {"c1", "c3"}).to_bytes()
    assert [entry.rewrite.site for entry in made] == ["c1", "c3"]


def test_a_region_cut_out_computes_what_it_computes_inside() -> None:
    model = chain(4)
    wrong = applied(model, OneWeightOff({"c2"}))
    cutter = Cutter(model, wrong, {})
    region = next(found for found in cutter.regions if found.outputs == ("c2",))
    pair = cutter.pair(region)
    assert pair is not None
    assert pair.inputs == ("r1",)
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 6), dtype=np.float32)
    for whole, part in ((model, pair.before), (wrong, pair.after)):
        inside = capture(whole, ["r1", "c2"], [{"x": x}], Runtime())[0]
        alone = capture(part, ["c2"], [{"r1": inside["r1"]}], Runtime())[0]
        np.testing.assert_array_equal(alone["c2"], inside["c2"])
    (batch, *sizes) = pair.before.inputs[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dim.dim_value for dim in sizes] == [4, 6, 6]
