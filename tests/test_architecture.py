"""Imports go one way: which module may import which, read from the source files without importing them.

`LAYERS` is the whole rule for rewriter/. The wrong trees at the end show that every check can fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from import_graph import Import, public_names, read_imports, source_files

ROOT = Path(__file__).resolve().parents[1]

# From the top down. A module or subpackage of rewriter/ may import from every row below its own. Within a row it may
# import only itself: to let one of two neighbours import the other, give it a row of its own.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__main__"}),
    frozenset({"cli"}),  # the command line
    frozenset({"cli_audit", "cli_records"}),  # its largest command; commands of their own
    frozenset({"cli_finish"}),  # what commands do before and behind their work
    frozenset({"cli_channels", "cli_data", "cli_errors", "cli_inspect", "cli_options", "cli_reports"}),  # its parts
    frozenset({"cli_stop"}),  # Ctrl-C during a search
    frozenset({"cli_show"}),
    frozenset({"__init__"}),  # what `import rewriter` offers
    frozenset({"api"}),  # the functions behind it
    frozenset({"result"}),  # what comes of it, to be saved
    frozenset({"engine"}),  # the one loop
    frozenset({"chosen", "compared"}),  # which set of rewrites it is; whole models side by side
    frozenset({"contest", "lean"}),  # the choice over the whole model, by time and by bytes
    frozenset({"task"}),  # what optimize was asked
    frozenset({"blame", "moves"}),  # which rewrites an audit is against; whole models one step from another
    frozenset({"repro"}),  # a failed audit as two small files
    frozenset({"fates"}),  # what became of rewrites that were made
    frozenset({"remake", "repro_files"}),  # chosen rewrites once more; what is beside those files
    frozenset({"cutting"}),  # a part of two models as two small models
    # channel components drawn; rewrites that were chosen before; rounds of candidates
    frozenset({"channel_picture", "planned", "search", "whole_timing"}),
    frozenset({"chains", "channel_pieces"}),  # candidates in a row as one; what is one box of that picture
    # which candidates are kept, what each pass would do, what is installed, channel components
    frozenset({"candidates", "channel_survey", "choose", "doctor", "survey"}),
    frozenset({"findings", "tuning"}),  # what was measured in this search, and before
    frozenset({"report"}),  # what was found out, for people and programs
    frozenset({"pareto", "profile"}),  # which models are no worse than another; where a model spends its time
    frozenset({"certificate"}),  # an audit on record, and made again
    frozenset({"propose", "equivalence", "timing"}),
    frozenset({"registry"}),  # finding the passes
    frozenset({"grouping"}),  # what passes that give a convolution other groups have in common
    frozenset({"base"}),  # the base class of passes
    # where a pattern fits; a channel shuffle before a convolution, a channel order behind one
    frozenset({"match", "ordering", "shuffling"}),
    frozenset({"views"}),  # a run of nodes in another layout
    frozenset({"runs"}),  # convolutions and what is around them, to be computed in another layout together
    frozenset({"layout_pairs"}),  # changes of layout that undo each other
    frozenset({"layout_nodes"}),  # what each node does to the layout
    frozenset({"alike"}),  # nodes that can be in a run
    frozenset({"rewired"}),  # what only brings channels together, made in another way
    # channel components again, padded or permuted, or part by part; how what only brings channels together could be
    frozenset({"aligning", "picking", "relabelling", "repeating", "rewiring_plan"}),
    frozenset({"pieces"}),  # channels without what picks them
    frozenset({"transposing"}),  # a ConvTranspose node as its map
    frozenset({"neighbours"}),  # branches of a Concat that one convolution could compute
    # a conv map as nodes, a permutation into the weights before or behind, the branches of a Concat
    frozenset({"absorb", "emit", "fold", "joined", "stacks"}),
    frozenset({"proof", "rewiring"}),  # what was tracked, as a channel mix; what only brings channels together
    frozenset({"convmaps", "track"}),  # a Conv node with its geometry; what data movement and reductions do to channels
    frozenset(
        {"channelflow", "delimit", "following", "lifting"}
    ),  # what a rewrite may remove, a Conv node as a conv map
    frozenset({"affine", "selection", "windows"}),  # affine nodes, channels picked from a tensor, what a Conv looks at
    frozenset({"between", "channels", "per_channel"}),  # nodes between two others; operators that keep channels apart
    frozenset({"checks", "layouts", "rule", "pattern", "conv"}),
    frozenset({"graph"}),  # the model as passes see it
    frozenset({"build"}),  # new nodes
    frozenset({"feeds", "activations"}),  # inputs to run with, what tensors hold then
    frozenset({"data_loader"}),  # inputs that a script of the user's makes
    frozenset({"ranges", "samples"}),  # what inputs are drawn from, the user's own
    frozenset({"bindings", "options"}),  # concrete input shapes, how to run
    frozenset({"exactness", "footprint"}),  # whether a provider adds integers exactly; the memory a model takes
    # what ORT makes of a model; parts of a model; its shapes; the process whose memory is measured
    frozenset({"census", "context", "footprint_child", "region", "shapes"}),
    frozenset({"constants", "names", "saving", "session"}),
    frozenset({"provenance"}),  # what a rewritten model says of itself
    frozenset({"contrib_definitions"}),  # operators that stand for several of ONNX's
    frozenset({"model"}),  # load, look, splice
    frozenset({"diagnosis"}),  # why a provider cannot be used
    frozenset({"external", "wire", "wiring", "providers", "nvidia"}),  # data files, bytes, graph wiring; devices
    # operators of ORT's own, sums to probe with, boxes and arrows, what everything may need
    frozenset(
        {"bisect", "contrib", "drawing", "errors", "exactness_cases", "logs", "objective", "patience", "visible"}
    ),
)
TABLE = Path(__file__).name
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# What a pass may import besides NumPy and the standard library.
PUBLIC = frozenset({"rewriter", "rewriter.conv"})
# The auditor does not trust the rewriter: it reaches none of these, not even through another module. They are passes,
# and the rows that serve them: from finding passes down to rules and weight algebra.
SERVING_PASSES = frozenset(name for name, rank in RANK.items() if RANK["registry"] <= rank <= RANK["conv"])
UNTRUSTED = frozenset({"passes"} | {f"rewriter.{name}" for name in SERVING_PASSES})
# What neither the engine nor the reference models may lean on.
NEVER_FROM_REWRITER = frozenset({"models", "tests", "benchmarks"})
NEVER_FROM_MODELS = frozenset({"rewriter", "passes", "tests", "benchmarks"})


def layer_name(module: str) -> str:
    """`rewriter.timing.records` → `timing`; the package itself → `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def every_module_has_a_layer(root: Path) -> Iterator[str]:
    for module, path in source_files(root, "rewriter").items():
        if layer_name(module) not in RANK:
            yield f"{path.relative_to(root)} has no layer: place '{layer_name(module)}' in LAYERS of {TABLE}"


def imports_go_down(root: Path) -> Iterator[str]:
    for found in read_imports(root, "rewriter"):
        upper, lower = layer_name(found.importer), layer_name(found.module)
        if found.top != "rewriter" or upper == lower or not {upper, lower} <= RANK.keys():
            continue
        if RANK[upper] >= RANK[lower]:
            yield f"{found.where}: {found.importer} imports {found.module}, which is not below it in LAYERS"


def equivalence_trusts_nothing_it_judges(root: Path) -> Iterator[str]:
    reached: dict[str, list[Import]] = {}
    for found in read_imports(root, "rewriter"):
        reached.setdefault(found.importer, []).append(found)
    waiting = [module for module in reached if layer_name(module) == "equivalence"]
    seen = set(waiting)
    while waiting:
        for found in reached.get(waiting.pop(), []):
            if any(found.module == name or found.module.startswith(f"{name}.") for name in UNTRUSTED):
                yield f"{found.where}: rewriter.equivalence reaches {found.module} through {found.importer}"
            elif found.module not in seen:
                seen.add(found.module)
                waiting.append(found.module)


def only_the_registry_names_passes(root: Path) -> Iterator[str]:
    for found in read_imports(root, "rewriter"):
        if found.top == "passes" and found.importer != "rewriter.registry":
            yield f"{found.where}: {found.importer} imports {found.module}; only rewriter/registry.py may know passes"


def rewriter_leans_on_no_models_or_tests(root: Path) -> Iterator[str]:
    for found in read_imports(root, "rewriter"):
        if found.top in NEVER_FROM_REWRITER:
            yield f"{found.where}: {found.importer} imports {found.module}"


def conv_is_pure_numpy(root: Path) -> Iterator[str]:
    for found in read_imports(root, "rewriter"):
        inside = layer_name(found.importer) == "conv" and layer_name(found.module) != "conv"
        if inside and found.module != "rewriter.errors" and not is_numpy_or_standard(found):
            yield f"{found.where}: rewriter.conv imports {found.module}; weight algebra knows NumPy only"


def passes_use_public_names(root: Path) -> Iterator[str]:
    offered = public_names(root / "rewriter" / "__init__.py")
    for found in read_imports(root, "passes"):
        if is_numpy_or_standard(found):
            continue
        if found.module not in PUBLIC or (found.name or "").startswith("_"):
            yield f"{found.where}: {found.importer} imports {found.module}, which is no public part of rewriter"
        elif found.module == "rewriter" and found.name is not None and found.name not in offered:
            yield f"{found.where}: {found.importer} imports {found.name}, which rewriter/__init__.py does not offer"


def public_names_are_no_modules(root: Path) -> Iterator[str]:
    modules = {layer_name(module) for module in source_files(root, "rewriter")}
    for name in sorted(public_names(root / "rewriter" / "__init__.py") & modules):
        yield f"rewriter.{name} is a module and a public name: which is meant depends on the order of imports"


def models_stand_alone(root: Path) -> Iterator[str]:
    for found in read_imports(root, "models"):
        if found.top in NEVER_FROM_MODELS:
            yield f"{found.where}: {found.importer} imports {found.module}"


def is_numpy_or_standard(found: Import) -> bool:
    return found.top == "numpy" or found.top in sys.stdlib_module_names


Check = Callable[[Path], Iterator[str]]
CHECKS: tuple[Check, ...] = (
    every_module_has_a_layer,
    imports_go_down,
    equivalence_trusts_nothing_it_judges,
    only_the_registry_names_passes,
    rewriter_leans_on_no_models_or_tests,
    conv_is_pure_numpy,
    passes_use_public_names,
    public_names_are_no_modules,
    models_stand_alone,
)


@pytest.mark.parametrize("check", CHECKS)
def test_the_sources(check: Check) -> None:
    assert list(check(ROOT)) == []


@pytest.mark.parametrize("package", ["rewriter", "passes", "models"])
def test_there_is_something_to_check(package: str) -> None:
    assert source_files(ROOT, package), f"no source file below {package}/"


def test_layers_name_each_module_once_and_none_that_is_gone() -> None:
    named = [name for row in LAYERS for name in row]
    assert len(named) == len(RANK)
    assert RANK.keys() - {layer_name(module) for module in source_files(ROOT, "rewriter")} == set()


def test_the_auditor_distrusts_what_it_must() -> None:
    assert {"rewriter.conv", "rewriter.rule", "rewriter.track", "rewriter.lifting", "passes"} <= UNTRUSTED


# One wrong line each, in an otherwise right tree: (check, file, line, what the complaint must name).
WRONG: tuple[tuple[Check, str, str, str], ...] = (
    (every_module_has_a_layer, "rewriter/novelty.py", "", "place 'novelty' in LAYERS"),
    (every_module_has_a_layer, "rewriter/novelty/deep.py", "", "place 'novelty' in LAYERS"),
    (imports_go_down, "rewriter/model.py", "from rewriter.engine import run", "rewriter/model.py:1"),
    (imports_go_down, "rewriter/model.py", "from rewriter import engine", "imports rewriter.engine"),
    (imports_go_down, "rewriter/model.py", "from . import engine", "imports rewriter.engine"),
    (imports_go_down, "rewriter/model.py", "import rewriter", "imports rewriter,"),
    (imports_go_down, "rewriter/engine.py", "def f():\n    from rewriter import api", "rewriter/engine.py:2"),
    (imports_go_down, "rewriter/engine.py", "import_module('rewriter.api')", "imports rewriter.api"),
    (imports_go_down, "rewriter/engine.py", "importlib.import_module('.api', __package__)", "imports rewriter.api"),
    (imports_go_down, "rewriter/timing/clock.py", "from rewriter.equivalence import exact", "equivalence.exact"),
    (imports_go_down, "rewriter/timing/clock.py", "from rewriter import equivalence", "rewriter.equivalence"),
    (imports_go_down, "rewriter/timing/clock.py", "from ..equivalence.exact import x", "equivalence.exact"),
    (equivalence_trusts_nothing_it_judges, "rewriter/equivalence/exact.py", "import rewriter.conv", "exact.py:1"),
    (equivalence_trusts_nothing_it_judges, "rewriter/equivalence/exact.py", "from ..conv import pad", "exact.py:1"),
    (equivalence_trusts_nothing_it_judges, "rewriter/region.py", "import rewriter.track", "through rewriter.region"),
    (equivalence_trusts_nothing_it_judges, "rewriter/equivalence/exact.py", "import passes.regroup", "passes.regroup"),
    (only_the_registry_names_passes, "rewriter/engine.py", "import passes", "rewriter/engine.py:1"),
    (only_the_registry_names_passes, "rewriter/engine.py", "__import__('passes.regroup')", "passes.regroup"),
    (rewriter_leans_on_no_models_or_tests, "rewriter/api.py", "from models.zoo import names", "models.zoo"),
    (rewriter_leans_on_no_models_or_tests, "rewriter/api.py", "import tests.data", "tests.data"),
    (conv_is_pure_numpy, "rewriter/conv/groups.py", "import onnx", "rewriter.conv imports onnx"),
    (conv_is_pure_numpy, "rewriter/conv/__init__.py", "from rewriter import model", "rewriter.model"),
    (passes_use_public_names, "passes/regroup.py", "from rewriter.engine import run", "rewriter.engine"),
    (passes_use_public_names, "passes/regroup.py", "from rewriter import engine", "rewriter.engine"),
    (passes_use_public_names, "passes/regroup.py", "from rewriter.conv import _pad", "no public part"),
    (passes_use_public_names, "passes/regroup.py", "from rewriter import secret", "secret, which rewriter"),
    (passes_use_public_names, "passes/regroup.py", "import onnx", "imports onnx"),
    (passes_use_public_names, "passes/regroup.py", "from passes import fold", "imports passes"),
    (public_names_are_no_modules, "rewriter/optimize.py", "", "rewriter.optimize is a module and a public name"),
    (models_stand_alone, "models/emit.py", "from rewriter import model", "rewriter"),
)
RIGHT: Mapping[str, str] = {
    "rewriter/__init__.py": "from .api import optimize as optimize\nfrom .track import follow as follow",
    "rewriter/api.py": "from . import engine\nfrom .engine import run",
    "rewriter/engine.py": "import onnx\nfrom rewriter.equivalence.exact import judge\nfrom rewriter import model",
    "rewriter/equivalence/__init__.py": "from rewriter.equivalence import exact",
    "rewriter/equivalence/exact.py": "from rewriter import region\nimport numpy as np",
    "rewriter/registry.py": "import passes",
    "rewriter/region.py": "import rewriter.model",
    "rewriter/rule.py": "",
    "rewriter/track.py": "from rewriter import rule as rules",
    "rewriter/conv/__init__.py": "import math\nfrom rewriter.conv.groups import regroup",
    "rewriter/conv/groups.py": "import math\nimport numpy as np\nfrom rewriter.errors import BadInput",
    "rewriter/model.py": "",
    "passes/__init__.py": "",
    "passes/regroup.py": "import math\nimport numpy as np\nfrom rewriter import follow\nfrom rewriter.conv import pad",
    "models/emit.py": "from models import errors",
    "models/errors.py": "",
}


def plant(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_tree_passes(check: Check, tmp_path: Path) -> None:
    assert list(check(plant(tmp_path, RIGHT))) == []


@pytest.mark.parametrize(("check", "file", "line", "complaint"), WRONG)
def test_a_wrong_line_is_found(check: Check, file: str, line: str, complaint: str, tmp_path: Path) -> None:
    found = list(check(plant(tmp_path, {**RIGHT, file: line})))
    assert len(found) == 1
    assert complaint in found[0]


def test_every_check_has_a_wrong_line() -> None:
    assert {check for check, *_ in WRONG} == set(CHECKS)
