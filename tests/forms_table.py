"""The table form × form as data: which pass turns which form into which, and why others do not.

`conversions()` puts single steps together to the chains between all forms; `why_not(a, b)` is the sentence where there
is no chain.  What is said here is run by forms_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from forms_draws import Case
from forms_known import FORMS
from rewriter.rule import Safety, Settings

RANK = [Safety.EXACT, Safety.FINITE, Safety.ROUNDING, Safety.APPROXIMATE]


@dataclass(frozen=True)
class Pass:
    """One pass with the settings that make the conversion."""

    name: str
    settings: Settings = field(default_factory=dict)

    def __str__(self) -> str:
        chosen = ", ".join(f"{key}={str(value).lower()}" for key, value in self.settings.items())
        return f"{self.name} ({chosen})" if chosen else self.name


@dataclass(frozen=True)
class Conversion:
    """From one form to another: the passes in order, and the weakest of their declared safeties."""

    source: str
    target: str
    passes: tuple[Pass, ...]
    safety: Safety
    via: tuple[str, ...] = ()
    needs: str = ""
    """What a model of the source form must also be, in words; "" for every one."""
    fits: tuple[Callable[[Case], bool], ...] = ()
    graded: Safety | None = None
    """The weakest grade that the audit gives, where it cannot show what the passes declare; `note` says why."""
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.target}"


def _step(source: str, target: str, name: str, safety: Safety, **settings: str | int | bool) -> Conversion:
    return Conversion(source, target, (Pass(name, settings),), safety)


def _up_to_2d(case: Case) -> bool:
    return len(case.shapes["x"]) < 5


def _even(case: Case) -> bool:
    return case.groups > 2 and case.groups % 2 == 0


_E, _F, _R = Safety.EXACT, Safety.FINITE, Safety.ROUNDING
_ORDER = (
    "Where the convolution behind takes the order in, its products are summed in another one: the audit says ROUNDING."
)
_RUN = "A run with a residual around a Relu is shown on integers and by bounds, not from its weights: ROUNDING."
_MANY = (
    "In 3-D the positions are many: ONNX Runtime's two kernels may round further apart than the audit of a whole model "
    "lets pass, and nothing is written."
)
_REGROUP = Conversion("grouped", "wide_groups", (Pass("regroup", {"factor": 2}),), _F, (), "G even, over 2", (_even,))
STEPS: tuple[Conversion, ...] = (
    _step("depthwise_sum", "grouped", "depthwise-sum-to-grouped", _E),
    _step("grouped", "depthwise_sum", "grouped-to-depthwise-sum", _E),
    _step("grouped", "split_concat", "split-groups", _E),
    _step("split_concat", "grouped", "merge-split-groups", _E),
    _step("grouped", "block_dense", "grouped-to-dense", _F),
    _step("block_dense", "grouped", "dense-to-grouped", _F),
    _REGROUP,
    _step("wide_groups", "grouped", "dense-to-grouped", _F),
    _step("wide_groups", "block_dense", "grouped-to-dense", _F),
    _step("mixed_kernels", "grouped", "merge-split-groups", _F),
    _step("parallel", "dense", "merge-split-groups", _E),
    _step("depthwise", "depthwise_split", "split-multiplier", _E),
    replace(_step("depthwise_split", "depthwise", "merge-multiplier", _E), graded=_R, note=_ORDER),
    _step("depthwise", "block_dense", "grouped-to-dense", _F),
    _step("depthwise", "split_concat", "split-groups", _E),
    replace(_REGROUP, source="depthwise"),
    _step("depthwise_pointwise", "dense_rank_input", "fuse-separable", _R),
    _step("dense_rank_input", "depthwise_pointwise", "split-separable", _R, form="depthwise"),
    _step("pointwise_depthwise", "dense_rank_output", "fuse-separable", _R),
    _step("dense_rank_output", "pointwise_depthwise", "split-separable", _R, form="pointwise"),
    _step("spatial_separable", "dense_rank_space", "fuse-separable", _R),
    _step("dense_rank_space", "spatial_separable", "split-separable", _R, form="spatial"),
    replace(_step("conv1d", "conv1d_as_2d", "conv1d-to-conv2d", _E), graded=_R, note=_RUN),
    replace(_step("conv3d", "conv3d_as_2d", "conv3d-to-conv2d", _E), graded=_R, note=_RUN),
    _step("affine", "folded", "fold-affine", _R),
    _step("padded", "folded", "fold-affine", _E),
    _step("activated", "fused", "fuse-conv-activation", _E),
    _step("transposed_grouped", "transposed_split", "split-transposed", _E),
    _step("transposed_split", "transposed_grouped", "merge-transposed", _E),
    _step("transposed_grouped", "transposed_dense", "regroup-transposed", _F),
    _step("stacked_sum", "add_chain", "sum-of-stack", _E),
    replace(
        _step("mean", "pooled", "reduce-mean-to-global-pool", _R), needs="1-D or 2-D", fits=(_up_to_2d,), note=_MANY
    ),
)


@dataclass(frozen=True)
class No:
    """Why there is no conversion; `tried` are a pass that is asked on models of the source, and what it says."""

    why: str
    tried: Pass | None = None
    says: str = ""


_BLOCKS = "A dense weight without zero blocks has no form in groups: every output reads every input."
_IS_GROUPED = "It is a grouped convolution already, one with a group for each channel."
_ONE_INPUT = "Each output reads one channel: there is nothing to sum."
_SEVERAL = "Its groups have several inputs, a depthwise convolution reads one per output; depthwise_sum adds them up."
_ZEROS = "The zeros between its blocks are part of the map; with them, dense is block_dense."
_NARROW = (
    "No pass takes zeros off the edges of a kernel: the map has no kernels of several sizes unless they are put in."
)
_ONE_TENSOR = "No pass splits a convolution by its outputs alone: that would read its input twice and save nothing."
_LOW = "No rank of a random dense weight saves multiplications: split-separable declines with its singular values."
_RANKS = "Low rank of the one kind is not low rank of the other; fused, it is a dense convolution of its own kind."
_FLAT = "No pass goes back: it is done for kernels that ONNX Runtime has in 2-D only."
_NUMBERS = "Folding cannot be undone: which scales, shifts or borders were folded in is not in the weights."
_FUSED = "No pass goes back: the fused operator is made last, for ONNX Runtime alone."
_FINER = "There is no dense-to-grouped for ConvTranspose: blocks in a dense transposed weight are not looked for."
_STACK = "No pass goes back: a stack costs a copy of every branch and computes nothing."
_POOL = "No pass goes back: GlobalAveragePool is the form that ONNX Runtime's fast layout has."
_OTHER_WAY = (
    "No pass leads between Conv and ConvTranspose: with a stride it is another map; without one, it is a convolution "
    "with its kernel turned round, which is not looked for."
)
_OWN_SPLIT = Pass("split-separable")
WHY_NOT: Mapping[tuple[str, str], No] = {
    ("dense", "parallel"): No(_ONE_TENSOR),
    ("dense", "mixed_kernels"): No(_NARROW),
    ("dense", "grouped"): No(_BLOCKS, Pass("dense-to-grouped"), "no more blocks"),
    ("dense", "*groups"): No(_BLOCKS),
    ("parallel", "*groups"): No(
        "Merged, it is one dense convolution: every output reads every input, so that there are no groups."
    ),
    ("depthwise", "grouped"): No(_IS_GROUPED),
    ("depthwise_split", "grouped"): No("Merged, it is a grouped convolution already, one with a group per channel."),
    ("depthwise", "depthwise_sum"): No(_ONE_INPUT, Pass("grouped-to-depthwise-sum"), "depthwise already"),
    ("depthwise_split", "depthwise_sum"): No(_ONE_INPUT, Pass("grouped-to-depthwise-sum"), "depthwise already"),
    ("*groups", "dense"): No(_ZEROS),
    ("*groups", "depthwise"): No(_SEVERAL),
    ("*groups", "depthwise_split"): No(_SEVERAL),
    ("grouped", "depthwise_split"): No(_SEVERAL, Pass("split-multiplier"), "depthwise"),
    ("*groups", "mixed_kernels"): No(_NARROW),
    ("*groups", "parallel"): No(_ONE_TENSOR),
    ("dense", "depthwise_pointwise"): No(_LOW, _OWN_SPLIT, "[Nn]o split saves|nothing to separate"),
    ("dense", "*rank"): No(_LOW),
    ("*rank", "*rank"): No(_RANKS),
    ("*rank", "dense"): No("Fused, it is a dense convolution of low rank: the rows dense_rank_*; dense has full rank."),
    ("*rank", "*groups"): No(
        "Fused, it is a dense convolution: it has groups only where its weights have zero blocks."
    ),
    ("*groups", "*rank"): No("Its weights have low rank by chance only; where they have, the forms of low rank apply."),
    ("conv1d_as_2d", "conv1d"): No(_FLAT),
    ("conv3d_as_2d", "conv3d"): No(_FLAT),
    ("*layout", "*layout"): No(
        "The number of spatial axes is the model's: no view makes three of one, or one of three."
    ),
    ("folded", "*neighbours"): No(_NUMBERS),
    ("fused", "*neighbours"): No(_FUSED),
    ("activated", "*neighbours"): No("What is beside it is a Relu, which no weight can take in."),
    ("affine", "*neighbours"): No("What is beside it is affine: it goes into the weights and turns into nothing else."),
    ("padded", "*neighbours"): No("What is beside it is a border: it goes into `pads` and turns into nothing else."),
    ("transposed_dense", "*transposed"): No(_FINER),
    ("add_chain", "stacked_sum"): No(_STACK),
    ("pooled", "mean"): No(_POOL),
    ("*branches", "*branches"): No("A sum over branches is no mean over positions."),
    ("*transposed", "*"): No(_OTHER_WAY),
    ("*", "*transposed"): No(_OTHER_WAY),
    ("*layout", "*"): No(
        "It says on how many axes a convolution is computed, not which: a 2-D one may be in any form."
    ),
    ("*", "*layout"): No("It says on how many axes a convolution is computed; the passes of `conv1d` take any groups."),
    ("*neighbours", "*"): No("It says what stands beside a convolution, whose own form may be any."),
    ("*", "*neighbours"): No("It says what stands beside a convolution, whose own form may be any."),
    ("*branches", "*"): No("It says what becomes of convolutions' outputs; the convolutions may be of any form."),
    ("*", "*branches"): No("It says what becomes of convolutions' outputs; the convolutions may be of any form."),
}


def why_not(source: str, target: str) -> No:
    """The most specific sentence: of the two forms, of one and a family, of two families."""
    families = f"*{FORMS[source].family}", f"*{FORMS[target].family}"
    for a, b in ((source, target), (source, families[1]), (families[0], target), families):
        if (a, b) in WHY_NOT:
            return WHY_NOT[a, b]
    return WHY_NOT.get((families[0], "*")) or WHY_NOT["*", families[1]]


def conversions() -> dict[tuple[str, str], Conversion]:
    """Every pair of forms that steps lead between: the fewest, and of those the safest; none where WHY_NOT says so."""
    found: dict[tuple[str, str], Conversion] = {}
    for source in FORMS:
        reached: dict[str, Conversion] = {source: Conversion(source, source, (), Safety.EXACT)}
        edge = [source]
        while edge:
            made: dict[str, Conversion] = {}
            for at in edge:
                for step in STEPS:
                    if step.source != at or step.target in reached or (source, step.target) in WHY_NOT:
                        continue
                    chain = _joined(reached[at], step)
                    if step.target not in made or _order(chain) < _order(made[step.target]):
                        made[step.target] = chain
            reached |= made
            edge = list(made)
        found |= {(source, target): chain for target, chain in reached.items() if target != source}
    return found


def _joined(chain: Conversion, step: Conversion) -> Conversion:
    grades = [grade for grade in (chain.graded, step.graded) if grade is not None]
    return replace(
        step,
        source=chain.source,
        passes=(*chain.passes, *step.passes),
        safety=max(chain.safety, step.safety, key=RANK.index),
        via=(*chain.via, chain.target) if chain.passes else (),
        needs=" and ".join(dict.fromkeys(filter(None, [chain.needs, step.needs]))),
        fits=(*chain.fits, *step.fits),
        graded=max(grades, key=RANK.index, default=None),
        note=chain.note or step.note,
    )


def _order(chain: Conversion) -> int:
    return RANK.index(chain.safety)


THERE_AND_BACK: tuple[tuple[str, str], ...] = (
    ("grouped", "depthwise_sum"),
    ("grouped", "split_concat"),
    ("grouped", "block_dense"),
    ("grouped", "wide_groups"),
    ("depthwise", "depthwise_split"),
    ("transposed_grouped", "transposed_split"),
)
"""Forms and others that they come back from with the same weights, to the last bit."""
