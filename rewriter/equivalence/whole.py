"""L4: every output of both whole models, on several inputs, against the original's own error.

The original's own error is how far its outputs move between optimization levels and thread counts, and, where that does
not explain a difference, when its inputs change by one unit in the last place.
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
from rewriter.equivalence.inputs import USERS, Trial, nudged
from rewriter.equivalence.numeric import ELSEWHERE, mismatch, observed_allowance
from rewriter.equivalence.precision import any_finite, largest_finite, relative_error, unit_roundoff, worst
from rewriter.equivalence.records import LevelResult, OutputAudit, Witness, failed, not_applicable, passed
from rewriter.model import Model
from rewriter.session import Runtime, SessionFailed, open_session, run

_CANCELS = 256.0  # times the allowance, for what leaves a region proven and within a certified bound
_NUDGES = 4  # runs of the original at nudged inputs, where outputs differ by more than its own runs


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
    approximate: frozenset[str] = frozenset()
    """Outputs that only have to approximate: on the user's inputs their error is measured, and on none it is judged."""
    certified: frozenset[str] = frozenset()
    """Outputs that leave a region proven by L1 and within L3's certified bound."""
    witnesses: list[Witness] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    """Those made so far."""
    _waiting: Iterator[Trial] = field(default_factory=lambda: iter(()))

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

        Captures in the first two runs at the first binding, and on the user's inputs where an error is measured on
        these.  With `defer` only one trial of each binding is run now, and the others in `compare`, one at a time, so
        that memory holds few outputs.
        """
        waiting: list[Trial] = []
        for trial in trials:
            ran = [done.binding for done in self.runs]
            if defer and trial.binding in ran:
                waiting.append(trial)
                continue
            capture = trial.binding == 0 and ran.count(0) < 2
            done = self._run_original(trial, capture=capture or bool(self.approximate and trial.binding == USERS))
            if done is not None:
                self.runs.append(done)
        self._waiting = iter(waiting)
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
        self, unit: float, products: int, *, finite: bool = True, proven: bool = False
    ) -> tuple[LevelResult, tuple[OutputAudit, ...]]:
        """Run the rewritten model on the same inputs and compare every output.  `unit`, `products`: of the regions.

        `finite`: no constant of the original's regions is infinite or NaN; otherwise it depends on the kernel chosen
        where outputs are (0 · NaN in the padding), and other places of NaN and infinity say nothing.
        `proven`: L1 showed every region to be the same up to rounding, so that only rounding can move an output.
        """
        figures = {name: _Figures(name) for name in self.outputs}
        deployed: object = None
        runtime = self.elsewhere or self.runtime
        count = 0
        for done in self._all_runs():
            try:
                found = []
                if not count:
                    found.append(run(open_model(self.after, runtime.at("disable")), done.feeds, self.outputs))
                    deployed = open_model(self.after, runtime)
                found.append(run(deployed, done.feeds, self.outputs))
            except SessionFailed as error:
                return failed("L4", f"The original runs, the rewritten model does not: {error}"), ()
            count += 1
            for outputs in found:
                for name, figure in figures.items():
                    self._take(figure, done, outputs[name], unit, products, proven)
            for name, figure in figures.items():
                if done.binding == self.runs[0].binding:
                    figure.follow(done.deployed[name])
        if not count:
            return not_applicable("L4", "Not applicable: the original ran on none of the inputs."), ()
        records = tuple(figure.record() for figure in figures.values())
        problems = [figure.problem for figure in figures.values() if figure.problem]
        if not finite and problems and all(problem.endswith(ELSEWHERE) for problem in problems):
            why = "constants are infinite or NaN, and where outputs are depends on the kernel that is run"
            return not_applicable("L4", f"Not applicable: {why}."), records
        return self._result(figures.values(), records, count), records

    def _take(self, figure: _Figures, done: Run, new: Array, unit: float, products: int, proven: bool) -> None:
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
        allowed = float(observed_allowance(old, [control], unit, products))
        error = worst(old, new)[0]
        if error > allowed:
            allowed = self._nudged_allowance(done, name, unit, products)
        if name in self.certified and error > allowed:
            # A sum that cancels (a mean of many values) is off by much of itself: L3's bound knows that, this one not.
            allowed = max(allowed, min(error, _CANCELS * allowed))
        figure.judge(error, allowed)

    def _flips(self, done: Run, name: str) -> int:
        """How many elements of a whole-number output may flip where every region is proven and only rounding is left.

        A rounding error flips an ArgMax or a comparison where two values nearly tie.  Twice as many flips are allowed
        as the original itself shows when its inputs are off by a unit in the last place, and one in each full 200.
        """
        old, most = done.deployed[name], 0
        for seed in range(_NUDGES):
            with contextlib.suppress(SessionFailed):  # where it computes nothing at such inputs, they tell nothing
                other = run(self._deployed, nudged(done.feeds, seed), [name])[name]
                most = max(most, int((other != old).sum()) if other.shape == old.shape else 0)
        return max(2 * most, int(old.size) // 200)

    def _nudged_allowance(self, done: Run, name: str, unit: float, products: int) -> float:
        """The allowance with the original's spread under inputs that are off by a unit in the last place."""
        others = [done.plain[name]]
        for seed in range(_NUDGES):  # where rounding is amplified, one of them says little of how far
            with contextlib.suppress(SessionFailed):  # where it computes nothing at such inputs, they tell nothing
                others.append(run(self._deployed, nudged(done.feeds, seed), [name])[name])
        return float(observed_allowance(done.deployed[name], others, unit, products))

    def _result(self, figures: Iterable[_Figures], records: Sequence[OutputAudit], count: int) -> LevelResult:
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
            return failed(
                "L4",
                f"The output '{worst.name}' differs by {worst.max_abs:.3g}, {worst.ratio:.3g} times what the "
                "original's own error allows.",
                worst=worst.ratio,
            )
        return passed(
            "L4",
            f"All outputs are as accurate as the original's on {count} inputs.",
            worst=worst.ratio,
            runs=count,
        )


@dataclass
class _Figures:
    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    rms: float = 0.0
    tolerance: float = 0.0
    spread: float = 0.0
    ratio: float = 0.0
    bitwise: bool = True
    finite: bool = False
    first: Array | None = None
    runs: int = 0
    constant: bool = True
    """Whether the original's output never changed although its inputs did."""
    problem: str = ""

    def see(self, old: Array, new: Array, control: Array, *, measure: bool = True) -> None:
        """Take in one comparison for the figures; without `measure` only of what kind and how large the output is."""
        self.shape, self.dtype = tuple(old.shape), str(old.dtype)
        same = old.dtype == new.dtype and old.shape == new.shape
        self.bitwise = self.bitwise and same and old.tobytes() == new.tobytes()
        if old.dtype.kind in "SO" or old.shape != new.shape or not old.size:
            return
        self.finite |= any_finite(old)
        if not measure:
            return
        error, needed = worst(old, new)
        if not np.isnan(off := relative_error([(old, new)])):
            self.rms = max(self.rms, off)
        self.max_abs = max(self.max_abs, error)
        self.max_rel = max(self.max_rel, error / max(largest_finite(old), 1e-300) if error else 0.0)
        self.tolerance = max(self.tolerance, needed)
        if control.shape == old.shape:
            self.spread = max(self.spread, worst(old, control)[0])

    def follow(self, output: Array) -> None:
        """Take in the original's output, to see whether it ever changes."""
        self.runs += 1
        if self.first is None:
            self.first = output
        elif self.constant:
            self.constant = output.shape == self.first.shape and output.tobytes() == self.first.tobytes()

    def judge(self, error: float, allowed: float) -> None:
        """Take in one error as a fraction of what is allowed."""
        self.ratio = max(self.ratio, 0.0 if error == 0 else float("inf") if allowed == 0 else error / allowed)

    def record(self) -> OutputAudit:
        return OutputAudit(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            rms=self.rms,
            tolerance=self.tolerance,
            spread=self.spread,
            ratio=self.ratio,
            bitwise=self.bitwise,
            compared=self.finite and not (self.runs > 1 and self.constant),
        )


def open_model(model: Model, runtime: Runtime) -> object:
    """A session of a whole model: from its file where it has one, so that nothing is copied."""
    if model.path is not None:
        return open_session(model.path, runtime)
    return open_session(model.to_bytes(), runtime, external_folder=model.folder)
