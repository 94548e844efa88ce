"""L4: every output of both whole models, on several inputs, against the original's own error.

The original's own error is how far its outputs move between optimization levels and thread counts, and, where that does
not explain a difference, when its inputs change by one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx

from rewriter.constants import Array
from rewriter.equivalence.inputs import Trial, nudged
from rewriter.equivalence.numeric import mismatch, observed_allowance
from rewriter.equivalence.precision import difference, unit_roundoff
from rewriter.equivalence.records import LevelResult, OutputAudit, Witness, failed, not_applicable, passed
from rewriter.model import Model
from rewriter.session import Runtime, SessionFailed, open_session, run


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
    witnesses: list[Witness] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

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

    def run_original(self, trials: Iterable[Trial], keep: int = 2) -> None:
        """Run the original on all trials; what it refuses is a witness with a problem.  Captures `keep` times."""
        for trial in trials:
            problem = trial.witness.problem
            for feeds in trial.attempts:
                try:
                    self._run_original(trial, feeds, capture=len(self.runs) < keep)
                except SessionFailed as error:
                    problem = str(error)
                    continue
                problem = ""
                break
            self.witnesses.append(trial.witness.model_copy(update={"problem": problem}))
        vars(self).pop("_plain", None)  # a session holds a copy of all weights

    def _run_original(self, trial: Trial, feeds: Mapping[str, Array], *, capture: bool) -> None:
        deployed = run(self._deployed, feeds, self.outputs)
        names = [*self.outputs, *(self.capture if capture else ())]
        plain = run(self._plain, feeds, names)
        inside = {name: plain[name] for name in self.capture if name in plain}
        witness = trial.witness
        self.runs.append(
            Run(witness, trial.binding, feeds, deployed, {n: plain[n] for n in self.outputs}, {**feeds, **inside})
        )

    def compare(self, unit: float, products: int) -> tuple[LevelResult, tuple[OutputAudit, ...]]:
        """Run the rewritten model on the same inputs and compare every output.  `unit`, `products`: of the regions."""
        if not self.runs:
            return not_applicable("L4", "Not applicable: the original ran on none of the inputs."), ()
        figures = {name: _Figures(name) for name in self.outputs}
        try:
            deployed = open_model(self.after, self.runtime)
            plain = open_model(self.after, self.runtime.at("disable"))
            for number, done in enumerate(self.runs):
                found = [run(deployed, done.feeds, self.outputs)]
                if number == 0:
                    found.append(run(plain, done.feeds, self.outputs))
                for outputs in found:
                    for name, figure in figures.items():
                        self._take(figure, done, outputs[name], unit, products)
        except SessionFailed as error:
            return failed("L4", f"The original runs, the rewritten model does not: {error}"), ()
        records = tuple(figure.record(self._constant(name)) for name, figure in figures.items())
        return self._result(figures.values(), records), records

    def _take(self, figure: _Figures, done: Run, new: Array, unit: float, products: int) -> None:
        name = figure.name
        old, control = done.deployed[name], done.plain[name]
        figure.see(old, new, control)
        figure.problem = figure.problem or mismatch(old, new, control)
        if figure.problem or not old.size:
            return
        if old.dtype.kind in "biuSO":
            if not np.array_equal(old, new) and np.array_equal(old, control):
                figure.problem = f"differs in {int((old != new).sum())} of {old.size} elements"
            return
        code = onnx.helper.np_dtype_to_tensor_dtype(old.dtype)
        unit = max(unit, unit_roundoff(code))
        allowed = float(observed_allowance(old, [control], unit, products))
        error = float(difference(old, new).max(initial=0))
        if error > allowed:
            off = run(self._deployed, nudged(done.feeds, len(figure.name)), [name])[name]
            allowed = float(observed_allowance(old, [control, off], unit, products))
        figure.judge(error, allowed)

    def _constant(self, name: str) -> bool:
        """Whether the original's output never changed although its inputs did."""
        first = [done.deployed[name] for done in self.runs if done.binding == self.runs[0].binding]
        return len(first) > 1 and all(other.tobytes() == first[0].tobytes() for other in first[1:])

    def _result(self, figures: Iterable[_Figures], records: Sequence[OutputAudit]) -> LevelResult:
        for figure in figures:
            if figure.problem:
                return failed("L4", f"The output '{figure.name}' {figure.problem}.", worst=float("inf"))
        worst = max(records, key=lambda record: record.ratio, default=None)
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
            f"All outputs are as accurate as the original's on {len(self.runs)} inputs.",
            worst=worst.ratio,
            runs=len(self.runs),
        )


@dataclass
class _Figures:
    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    tolerance: float = 0.0
    spread: float = 0.0
    ratio: float = 0.0
    bitwise: bool = True
    finite: bool = False
    problem: str = ""

    def see(self, old: Array, new: Array, control: Array) -> None:
        """Take in one comparison for the figures."""
        self.shape, self.dtype = tuple(old.shape), str(old.dtype)
        self.bitwise &= old.dtype == new.dtype and old.shape == new.shape and old.tobytes() == new.tobytes()
        if old.dtype.kind in "SO" or old.shape != new.shape or not old.size:
            return
        wide = np.abs(old.astype(np.float64))
        size = wide[np.isfinite(wide)]
        self.finite |= bool(size.size)
        error = difference(old, new)
        self.max_abs = max(self.max_abs, float(error.max(initial=0)))
        self.max_rel = max(self.max_rel, float(error.max(initial=0)) / max(float(size.max(initial=0)), 1e-300))
        needed = error / (1 + np.where(np.isfinite(wide), wide, 0.0))
        self.tolerance = max(self.tolerance, float(needed.max(initial=0)))
        if control.shape == old.shape:
            self.spread = max(self.spread, float(difference(old, control).max(initial=0)))

    def judge(self, error: float, allowed: float) -> None:
        """Take in one error as a fraction of what is allowed."""
        self.ratio = max(self.ratio, 0.0 if error == 0 else float("inf") if allowed == 0 else error / allowed)

    def record(self, constant: bool) -> OutputAudit:
        return OutputAudit(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            tolerance=self.tolerance,
            spread=self.spread,
            ratio=self.ratio,
            bitwise=self.bitwise,
            compared=self.finite and not constant,
        )


def open_model(model: Model, runtime: Runtime) -> object:
    """A session of a whole model: from its file where it has one, so that nothing is copied."""
    if model.path is not None:
        return open_session(model.path, runtime)
    return open_session(model.to_bytes(), runtime, external_folder=model.folder)
