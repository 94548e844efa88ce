"""Many rewritten models against one original, on the levels that concern the whole model only (L0 and L4).

For a search among rewrites whose regions an audit has already been through: the original is run once, each other model
only as often as L4 asks for, and nothing is proven here.
"""

from __future__ import annotations

import numpy as np

from rewriter.bindings import find_bindings
from rewriter.equivalence.inputs import trials
from rewriter.equivalence.parts import reached
from rewriter.equivalence.precision import significand_bits, unit_roundoff
from rewriter.equivalence.records import Audit, AuditOptions, Level, LevelResult, RegionAudit
from rewriter.equivalence.structural import compare_structure
from rewriter.equivalence.whole import Whole
from rewriter.model import Model

_BATCHES = (1, 3)
_TF32 = 2.0**-11


class WholeProbe:
    """Whether models fail as a whole, judged as in the audit of the first of them."""

    def __init__(self, before: Model, audited: Audit, options: AuditOptions) -> None:
        """`audited` is the audit of a model with all of the rewrites: what it found out of the regions holds."""
        self._before = before
        self._audited = audited
        self._options = options
        codes = {tensor.data_type for tensor in before.headers.values()}
        units = [unit_roundoff(code) for code in codes if significand_bits(code)]
        self._unit = max([*units, _TF32 if options.runtime.tf32 else 0.0], default=0.0)
        self._whole: Whole | None = None

    def fails(self, after: Model) -> str:
        """What is wrong with the model as a whole, as a sentence; empty if L0 and L4 find nothing."""
        structure, _ = compare_structure(self._before, after)
        if structure.outcome == "fail":
            return structure.detail
        if after.to_bytes() == self._before.to_bytes():
            return ""
        with np.errstate(all="ignore"):
            level = self._compare(after)
        return level.detail if level.outcome == "fail" else ""

    def _compare(self, after: Model) -> LevelResult:
        regions = self._audited.regions
        if self._whole is None:
            self._whole = Whole(self._before, after, self._options.runtime, {}, full=self._options.full)
            self._whole.certified = frozenset(
                name for region in regions if _passes(region, "L1") and _certified(region) for name in region.outputs
            )
            bindings = find_bindings(self._before, self._options.input_shapes, _BATCHES, vary_given=True)
            self._whole.run_original(trials(self._before, bindings, self._options))
        self._whole.after = after
        self._whole.approximate = reached(after, self._options.approximated)
        # Not fewer products than L1 counted: `stages` are those of both sides, and more.
        products = max((int(_figure(region, "stages")) for region in regions), default=0)
        proven = bool(regions) and all(_passes(region, "L1") for region in regions)
        return self._whole.compare(self._unit, products, proven=proven)[0]


def _passes(region: RegionAudit, name: Level) -> bool:
    level = region.level(name)
    return level is not None and level.outcome == "pass"


def _certified(region: RegionAudit) -> bool:
    return _passes(region, "L3") and bool(_figure(region, "certified"))


def _figure(region: RegionAudit, name: str) -> float:
    level = region.level("L3")
    value = level.figures.get(name) if level else None
    return float(value) if isinstance(value, int | float) else 0.0
