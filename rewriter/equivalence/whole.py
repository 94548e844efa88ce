"""L4: every output of both whole models, on several inputs, against the original's own error.

In a full audit the original's own error is how far its outputs are from those of its float64 twin; the rewritten
model's may be twice that, and a floor.  Otherwise, and where there is no such reference, it is how far its outputs move
between optimization levels and thread counts.  What neither explains may still be rounding that the network amplifies:
then inputs are changed by one unit in the last place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.cut import own
from rewriter.equivalence.figures import Figures
from rewriter.equivalence.float64_runs import Progress, References
from rewriter.equivalence.inputs import USERS, Trial, nudged
from rewriter.equivalence.numeric import ELSEWHERE, mismatch, observed_allowance
from rewriter.equivalence.precision import largest_finite, significand_bits, unit_roundoff, wide, worst
from rewriter.equivalence.records import Figure, LevelResult, OutputAudit, Witness, failed, not_applicable, passed
from rewriter.equivalence.tolerances import tolerance_of
from rewriter.model import Model
from rewriter.options import Tolerance
from rewriter.session import Runtime, SessionFailed, open_session, run

_CANCELS = 256.0  # times the allowance, for what leaves a region proven and within a certified bound
_NUDGES = 4  # runs of the original at nudged inputs, where outputs differ by more than its own runs
_TRUST = 4.0  # times what its own runs allow, up to which the original's distance from float64 is its rounding
_FLOAT64_BITS = 50  # outputs that are nearly float64 themselves have no better reference


@dataclass(frozen=True, eq=False)
class Run:
    """One input on which the original ran: its outputs deployed and unoptimized, and tensors captured inside it."""

    witness: Witness
    binding: int
    feeds: Mapping[str, Array]
    deployed: Mapping[str, Array]
    plain: Mapping[str, Array]
    captured: Mapping[str, Array]


@dataclass(eq=False)
class Whole:
    """Sessions of both whole models, opened when first needed."""

    before: Model
    after: Model
    runtime: Runtime
    capture: Mapping[str, onnx.TypeProto]
    """Tensors inside the original to look at."""
    elsewhere: Runtime | None = None
    """What the second model runs on; None: the same as the first."""
    full: bool = False
    """Whether outputs are held against float64, on as many runs as their cost allows."""
    approximate: frozenset[str] = frozenset()
    """Outputs that only have to approximate: on the user's inputs their error is measured, and on none it is judged."""
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)
    """What the user would take: reported only."""
    certified: frozenset[str] = frozenset()
    """Outputs that leave a region proven by L1 and within L3's certified bound."""
    witnesses: list[Witness] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    """Those made so far."""
    _waiting: Iterator[Trial] = field(default_factory=lambda: iter(()))
    _planned: int = 0
    _references: References | None = None
    _held: set[tuple[str, int | None]] = field(default_factory=set)
    """The runs that outputs were held against float64 on."""
    _doubted: dict[str, float] = field(default_factory=dict)
    """Outputs whose reference was not trusted, with the original's distance from it as a multiple of its spread."""

    @cached_property
    def _deployed(self) -> object:
        return open_model(self.before, self.runtime)

    @cached_property
    def _plain(self) -> object:
        # Another number of threads too, so that one session shows both kinds of spread.
        threads = 2 if self.runtime.threads == 1 else 1
        extra = [
            onnx.helper.make_tensor_value_info(name, kind.tensor_type.elem_type, None)
            for name, kind in self.capture.items()
        ]
        runtime = replace(self.runtime.at("disable"), threads=threads)
        return open_model(self.before.with_outputs(extra) if extra else self.before, runtime)

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.before.outputs]

    def run_original(self, trials: Iterable[Trial], *, defer: bool = False) -> None:
        """Run the original on the trials; what it refuses is a witness with a problem.

        Captures in the first two runs at the first binding, and on the user's first inputs, on all of them where an
        error is measured on these.  With `defer` only one trial of each binding is run now, and the others in
        `compare`, one at a time, so that memory holds few outputs.
        """
        waiting: list[Trial] = []
        for trial in trials:
            ran = [done.binding for done in self.runs]
            if defer and trial.binding in ran:
                waiting.append(trial)
                continue
            first = ran.count(trial.binding) < {0: 2, USERS: 1}.get(trial.binding, 0)
            done = self._run_original(trial, capture=first or bool(self.approximate and trial.binding == USERS))
            if done is not None:
                self.runs.append(done)
        self._waiting = iter(waiting)
        self._planned = len(self.runs) + len(waiting)
        self.release(deployed=defer)

    def release(self, *, deployed: bool = False) -> None:
        """Close sessions that are not needed for now: each holds a copy of all weights, and the memory of a run."""
        vars(self).pop("_plain", None)
        if deployed:
            vars(self).pop("_deployed", None)

    def _run_original(self, trial: Trial, *, capture: bool) -> Run | None:
        problem = trial.witness.problem
        found: Run | None = None
        for feeds in trial.attempts:
            try:
                found, problem = self._attempt(trial, feeds, capture=capture), ""
                break
            except SessionFailed as error:
                problem = str(error)
        self.witnesses.append(trial.witness.model_copy(update={"problem": problem}))
        return found

    def _attempt(self, trial: Trial, feeds: Mapping[str, Array], *, capture: bool) -> Run:
        deployed = own(run(self._deployed, feeds, self.outputs))
        names = [*self.outputs, *(self.capture if capture else ())]
        plain = own(run(self._plain, feeds, names))
        inside = {name: plain[name] for name in self.capture if name in plain}
        outputs = {name: plain[name] for name in self.outputs}
        return Run(trial.witness, trial.binding, feeds, deployed, outputs, {**feeds, **inside})

    def _all_runs(self) -> Iterator[Run]:
        yield from self.runs
        for trial in self._waiting:
            done = self._run_original(trial, capture=False)
            if done is not None:
                if not self.runs:
                    self.runs.append(done)
                yield done
        self.release()

    def compare(
        self,
        unit: float,
        products: int,
        *,
        finite: bool = True,
        proven: bool = False,
        tell: Progress = lambda _stage, _done, _total: None,
    ) -> tuple[LevelResult, tuple[OutputAudit, ...]]:
        """Run the rewritten model on the same inputs and compare every output.  `unit`, `products`: of the regions.

        `finite`: no constant of the original's regions is infinite or NaN; otherwise it depends on the kernel chosen
        where outputs are (0 · NaN in the padding), and other places of NaN and infinity say nothing.
        `proven`: L1 showed every region to be the same up to rounding, so that only rounding can move an output.
        `tell` is told (stage, done, total).
        """
        figures = {name: Figures(name, given=tolerance_of(self.tolerances, name)) for name in self.outputs}
        deployed: object = None
        runtime = self.elsewhere or self.runtime
        count = 0
        self._doubted.clear()
        self._held.clear()
        for done in self._all_runs():
            tell("whole model", count, self._planned)
            try:
                found = []
                if not count:
                    found.append(run(open_model(self.after, runtime.at("disable")), done.feeds, self.outputs))
                    deployed = open_model(self.after, runtime)
                found.append(run(deployed, done.feeds, self.outputs))
            except SessionFailed as error:
                return failed("L4", f"The original runs, the rewritten model does not: {error}"), ()
            count += 1
            exact = self._exact(done, tell)
            for outputs in found:
                for name, figure in figures.items():
                    self._take(figure, done, outputs[name], exact.get(name), unit, products, proven, tell)
            for name, figure in figures.items():
                if done.witness.shapes == self.runs[0].witness.shapes:
                    figure.follow(done.deployed[name])
        if not count:
            return not_applicable("L4", "Not applicable: the original ran on none of the inputs."), ()
        records = tuple(figure.record() for figure in figures.values())
        problems = [figure.problem for figure in figures.values() if figure.problem]
        if not finite and problems and all(problem.endswith(ELSEWHERE) for problem in problems):
            why = "constants are infinite or NaN, and where outputs are depends on the kernel that is run"
            return not_applicable("L4", f"Not applicable: {why}."), records
        return self._result(figures.values(), records, count), records

    def _exact(self, done: Run, tell: Progress, *, insist: bool = False) -> Mapping[str, Array]:
        """The original's outputs in float64, if this run gets such a reference."""
        if not self.full:
            return {}
        if self._references is None:
            codes = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in done.deployed.items()}
            narrow = [name for name, code in codes.items() if (significand_bits(code) or _FLOAT64_BITS) < _FLOAT64_BITS]
            wanted = [name for name in self.outputs if name in narrow and name not in self.approximate]
            self._references = References(self.before, wanted)
        found = self._references.of(done.witness, done.binding, done.feeds, tell, insist=insist)
        self._held |= {(done.witness.recipe, done.witness.seed)} if found else set()
        return found

    def _take(
        self,
        figure: Figures,
        done: Run,
        new: Array,
        exact: Array | None,
        unit: float,
        products: int,
        proven: bool,
        tell: Progress,
    ) -> None:
        name = figure.name
        old, control = done.deployed[name], done.plain[name]
        figure.see(old, new, control, measure=name not in self.approximate or done.binding == USERS)
        figure.problem = figure.problem or mismatch(old, new, control)
        if figure.problem or not old.size or name in self.approximate:
            return
        if old.dtype.kind in "biuSO":
            wrong = int(((old != new) & (old == control)).sum())
            flips = self._flips(done, name) if wrong and proven and old.dtype.kind in "biu" else 0
            if wrong > flips:
                figure.problem = f"differs in {wrong} of {old.size} elements, where at most {flips} may"
            return
        code = onnx.helper.np_dtype_to_tensor_dtype(old.dtype)
        unit = max(unit, unit_roundoff(code))
        if exact is not None and self._trusts(exact, done, name, unit, products):
            self._hold(figure, done, new, exact, unit)
            return
        allowed = float(observed_allowance(old, [control], unit, products))
        error = worst(old, new)[0]
        if error > allowed:
            allowed = self._nudged_allowance(done, name, unit, products)
        if name in self.certified and error > allowed:
            # A sum that cancels (a mean of many values) is off by much of itself: L3's bound knows that, this one not.
            allowed = max(allowed, min(error, _CANCELS * allowed))
        if error > allowed and exact is None and figure.ratio <= 1:
            # Few runs show little of a network that amplifies rounding; how far off the original itself is, decides.
            exact = self._exact(done, tell, insist=True).get(name)
            if exact is not None and self._trusts(exact, done, name, unit, products):
                self._hold(figure, done, new, exact, unit)
                return
        figure.judge(error, allowed)

    def _trusts(self, exact: Array, done: Run, name: str, unit: float, products: int) -> bool:
        """Whether the reference is what the original computes but for its rounding.

        It is not where an operator means something else in float64 (a quantization that rounds the other way, a sum
        that overflows), or is something else in onnx's reference.  Then twice the original's distance from it would
        allow anything.
        """
        old = done.deployed[name]
        if exact.shape != old.shape or not np.isfinite(exact[np.isfinite(wide(old))]).all():  # NaN is near anything
            self._doubted[name] = float("inf")
            return False
        off = self._own_error(exact, done, name)
        usual = float(observed_allowance(old, [done.plain[name]], unit, products))
        trust = _TRUST if unit < 2**-12 else 1.0  # in 16 bits, eight units are much already
        if off > trust * usual:
            usual = self._nudged_allowance(done, name, unit, products)
        if off <= trust * usual:
            return True
        self._doubted[name] = max(self._doubted.get(name, 0.0), off / usual if usual else float("inf"))
        return False

    def _own_error(self, exact: Array, done: Run, name: str) -> float:
        return max(worst(exact, value[name])[0] for value in (done.deployed, done.plain))

    def _hold(self, figure: Figures, done: Run, new: Array, exact: Array, unit: float) -> None:
        """Judge one output by its error against float64: twice the original's (three times in 16 bits) and a floor."""
        name = figure.name
        error, off = worst(exact, new)[0], self._own_error(exact, done, name)
        factor = 2 if unit < 2**-12 else 3
        floor = 8 * unit * min(largest_finite(exact), largest_finite(done.deployed[name]))
        allowed = factor * off + floor
        if error > allowed:
            # Of few elements, one run may be right by luck; nudged inputs show how far off it usually is.
            usual = max([off, *(worst(exact, value)[0] for value in self._nudged(done, name))])
            allowed = factor * usual + floor
        if name in self.certified and error > allowed:
            allowed = max(allowed, min(error, _CANCELS * allowed))
        figure.hold(off, error, allowed)

    def _nudged(self, done: Run, name: str) -> list[Array]:
        """The original's output at inputs that are off by a unit in the last place; none where it computes nothing."""
        found = []
        for seed in range(_NUDGES):  # where rounding is amplified, one of them says little of how far
            with contextlib.suppress(SessionFailed):
                found.append(run(self._deployed, nudged(done.feeds, seed), [name])[name])
        return [value for value in found if value.shape == done.deployed[name].shape]

    def _flips(self, done: Run, name: str) -> int:
        """How many elements of a whole-number output may flip where every region is proven and only rounding is left.

        A rounding error flips an ArgMax or a comparison where two values nearly tie.  Twice as many flips are allowed
        as the original itself shows when its inputs are off by a unit in the last place, and one in each full 200.
        """
        old, most = done.deployed[name], 0
        for other in self._nudged(done, name):
            most = max(most, int((other != old).sum()))
        return max(2 * most, int(old.size) // 200)

    def _nudged_allowance(self, done: Run, name: str, unit: float, products: int) -> float:
        """The allowance with the original's spread under inputs that are off by a unit in the last place."""
        others = [done.plain[name], *self._nudged(done, name)]
        return float(observed_allowance(done.deployed[name], others, unit, products))

    def _result(self, figures: Iterable[Figures], records: Sequence[OutputAudit], count: int) -> LevelResult:
        """The level from the figures of `count` runs."""
        for figure in figures:
            if figure.problem:
                return failed("L4", f"The output '{figure.name}' {figure.problem}.", worst=float("inf"))
        worst = max(records, key=lambda record: record.ratio, default=None)
        rough = [record for record in records if record.name in self.approximate]
        if rough and worst is not None and worst.ratio <= 1:
            most = max(rough, key=lambda record: record.rms)
            detail = f"The output '{most.name}' is off by {most.rms:.3g} (root mean square, of its own)"
            return passed("L4", f"{detail} on the inputs given: an approximation.", rms=most.rms, runs=count)
        if worst is None or not any(record.compared for record in records):
            return not_applicable("L4", "Not applicable: no output is finite, non-empty and dependent on the input.")
        if not worst.ratio <= 1:
            off = ""
            if worst.own_error is not None and worst.new_error is not None:
                off = f" Against float64 it is off by {worst.new_error:.3g}, the original by {worst.own_error:.3g}."
            return failed(
                "L4",
                f"The output '{worst.name}' differs by {worst.max_abs:.3g}, {worst.ratio:.3g} times what the "
                f"original's own error allows.{off}",
                worst=worst.ratio,
                **self._reference_figures(),
            )
        return passed(
            "L4",
            f"All outputs are as accurate as the original's on {count} inputs{self._reference_text()}.",
            worst=worst.ratio,
            runs=count,
            **self._reference_figures(),
        )

    def _reference_figures(self) -> dict[str, Figure]:
        """What the outputs were held against in a full audit, and on how many runs."""
        if not self.full:
            return {}
        held = len(self._held)
        return {"reference": "float64" if held and not self._all_doubted() else "spread", "float64_runs": held}

    def _all_doubted(self) -> bool:
        return self._references is not None and self._doubted.keys() >= set(self._references.outputs)

    def _reference_text(self) -> str:
        """A clause on the float64 reference of a full audit: on how many runs, or why not."""
        if not self.full or self._references is None:
            return ""
        if not self._references.outputs:
            return " (none of them could be held against float64: integers, or float64 themselves)"
        if self._doubted:
            name, times = max(self._doubted.items(), key=lambda entry: entry[1])
            far = f" by {times:.3g} times what its own runs explain" if np.isfinite(times) else ""
            return f" (not all held against float64: for '{name}' the original gives something else{far})"
        why = f"; after that none: {self._references.problem}" if self._references.problem else ""
        held = len(self._held)
        if not held:
            return f" (there is no float64 reference: {self._references.problem})"
        return f", held against float64 on {held} of them{why}"


def open_model(model: Model, runtime: Runtime) -> object:
    """A session of a whole model: from its file where it has one, so that nothing is copied."""
    if model.path is not None:
        return open_session(model.path, runtime)
    return open_session(model.to_bytes(), runtime, external_folder=model.folder)
