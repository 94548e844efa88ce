"""Audit right rewrites by the thousand: a `different` is a false alarm.  Into benchmarks/results/right.json.

    python -m benchmarks.right [--cases 10000] [--first 0] [--only 'by hand: regrouped'] [--fresh] [--full 10]
    python -m benchmarks.right --again-alarms COMMIT

Case i is draw i // n of source i % n, of the n sources of tests/right_draws.py: rewrites made with NumPy alone, other
spellings, every conversion that the passes make, padded and permuted channels, small networks.  Its inputs, beside the
auditor's own, are of a distribution chosen by the seed.  Cases that are in build/right.jsonl are not run again, so an
interrupted campaign goes on where it was; --fresh begins anew.  Every tenth audit has the float64 reference and L5,
which cost a second each; --full 1 asks for them always.  The exit status is 1 on a false alarm.

--again-alarms audits the false alarms of the last result again, after a change of the auditor, and no other case.  The
result says so, and that the others were audited at COMMIT.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from rewriter.bindings import find_bindings
from rewriter.constants import Array
from rewriter.equivalence import AuditOptions, audit
from rewriter.model import Model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "right.json"
LOG = ROOT / "build" / "right.jsonl"
_TESTS = str(ROOT / "tests")
if _TESTS not in sys.path:  # where pytest has not put it
    sys.path.append(_TESTS)

if TYPE_CHECKING:
    from right_draws import Draw, Pair

_Values = Callable[[np.random.Generator, tuple[int, ...]], Array]
INPUTS: Final[Mapping[str, _Values | None]] = {
    "the auditor's alone": None,
    "behind a Relu": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
    "0 … 1": lambda rng, shape: rng.random(shape),
    "0 … 255, whole": lambda rng, shape: rng.integers(0, 256, shape),
    "95 % zeros": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.05),
    "× 0.00001": lambda rng, shape: rng.standard_normal(shape) * 1e-5,
    "all the same": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "far from 0": lambda rng, shape: rng.standard_normal(shape) + 50,
}


def main() -> int:
    """Run what is not yet in the log, say what was not accepted, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000, help="how many (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first draw of each source (default 0)")
    parser.add_argument("--only", default="", help="one source; nothing is written")
    parser.add_argument("--fresh", action="store_true", help="forget the cases that were run before")
    parser.add_argument("--full", type=int, default=10, help="every how many cases a full audit (default 10; 0: none)")
    parser.add_argument("--again-alarms", metavar="COMMIT", help="only the last result's false alarms, of this commit")
    arguments = parser.parse_args()
    from right_draws import sources

    if arguments.again_alarms:
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
        return _say_and_write(again(report, sources(), arguments.again_alarms), write=True)

    chosen = {name: draw for name, draw in sources().items() if arguments.only in ("", name)}
    if arguments.fresh:
        LOG.unlink(missing_ok=True)
    rows = [] if arguments.only else read_log()
    rows = campaign(chosen, arguments.cases, arguments.first, rows, full=arguments.full, log=not arguments.only)
    return _say_and_write(summary(rows), write=not arguments.only)


def _say_and_write(report: Mapping[str, Any], *, write: bool) -> int:
    """Say what was counted, and the exit status."""
    for row in report["false alarms"]:
        print(f"false alarm, {row['source']}, seed {row['seed']}: {row['reason']}")
    print(", ".join(f"{name} {count}" for name, count in report["counts"].items()))
    if write:
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(bool(report["counts"]["rejected"]) or not report["counts"]["rewrites"])


def read_log() -> list[dict[str, Any]]:
    """The cases that were run before."""
    if not LOG.exists():
        return []
    return [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def campaign(
    sources: Mapping[str, Draw],
    cases: int,
    first: int = 0,
    done: Sequence[dict[str, Any]] = (),
    *,
    full: int = 10,
    log: bool = False,
) -> list[dict[str, Any]]:
    """A row for each case, those done before included; every `full`th audit is a full one.

    `log` appends new rows to the log, and says how far it is.
    """
    known = {(row["source"], row["seed"]) for row in done}
    rows, names, started, new = list(done), list(sources), time.monotonic(), 0
    if log:
        LOG.parent.mkdir(exist_ok=True)
    for number in range(cases):
        name, seed = names[number % len(names)], first + number // len(names)
        if (name, seed) in known:
            continue
        rows.append(
            {"source": name, "seed": seed} | one(sources[name], name, seed, full=bool(full) and number % full == 0)
        )
        new += 1
        if log:
            with LOG.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
        if log and new % 100 == 0:
            rate = new / (time.monotonic() - started)
            sys.stderr.write(f"{number + 1} of {cases}, seed {seed}: {rate:.1f} cases a second\n")
    return rows


def again(report: Mapping[str, Any], sources: Mapping[str, Draw], commit: str) -> dict[str, Any]:
    """The report with its false alarms audited again; "again" says what was found of each, this time and before.

    Every other case has the verdict of the auditor at `commit`, which ran the campaign.
    """
    made: dict[str, Any] = json.loads(json.dumps(report))
    counts, by_source = made["counts"], {row["name"]: row for row in made["rewrites"]}
    made["commit"] = commit
    made["false alarms"] = []
    first = {(entry["source"], entry["seed"]): entry for entry in made.get("again", ())}
    for old in report["false alarms"]:
        name, seed = old["source"], old["seed"]
        row = {"source": name, "seed": seed} | one(sources[name], name, seed, full=old["full"])
        known = first.setdefault((name, seed), {"source": name, "seed": seed, "before": old["reason"]})
        known["verdict"] = row["verdict"]
        made["again"] = list(first.values())
        if row["verdict"] == "different":
            made["false alarms"].append(row)
            continue
        proven = row["verdict"] == "equivalent"
        counts["rejected"] -= 1
        counts["equivalent" if proven else "unproven"] += 1
        entry = by_source[name]
        entry["different"] -= 1
        entry["equivalent" if proven else "unproven"] += 1
        if proven:
            entry["grades"] = dict(sorted((Counter(entry["grades"]) + Counter([row["grade"]])).items()))
        else:
            made["reasons"] = _reasons([row]) | made["reasons"]
    return made


def one(draw: Draw, name: str, seed: int, *, full: bool = False) -> dict[str, Any]:
    """One case: draw, audit."""
    pair = draw(seed)
    if pair is None:
        return {"verdict": "not drawn"}
    rng = np.random.default_rng(zlib.crc32(f"inputs of {name} {seed}".encode()))
    inputs = str(rng.choice(list(INPUTS)))
    before, after = Model.load(pair.before), Model.load(pair.after)
    samples = () if INPUTS[inputs] is None else (_sample(before, pair, inputs, rng),)
    options = AuditOptions(seed=seed, full=full, input_shapes=_given(before, pair), samples=samples)
    started = time.monotonic()
    found = audit(before, after, options)
    return {
        "verdict": found.verdict,
        "grade": found.grade,
        "reason": "" if found.verdict == "equivalent" else found.reason,
        "weights": pair.weights,
        "inputs": inputs,
        "type": pair.dtype,
        "full": full,
        "seconds": round(time.monotonic() - started, 4),
    }


def _given(model: Model, pair: Pair) -> dict[str, tuple[int, ...]]:
    names = {value.name for value in model.inputs}
    return {name: tuple(shape) for name, shape in pair.shapes.items() if name in names}


def _sample(model: Model, pair: Pair, inputs: str, rng: np.random.Generator) -> dict[str, Array]:
    make = INPUTS[inputs]
    assert make is not None
    shapes = find_bindings(model, _given(model, pair))[0].shapes
    feeds = {}
    for value in model.inputs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.asarray(make(rng, tuple(shapes[value.name]))).astype(dtype)
    return feeds


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts by source, by distribution and by type, and why what was left unproven was."""
    drawn = [row for row in rows if row["verdict"] != "not drawn"]
    open_ = [row for row in drawn if row["verdict"] in ("approximate", "not_verified")]
    return {
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
        "counts": {
            "rewrites": len(drawn),
            "rejected": sum(row["verdict"] == "different" for row in drawn),
            "equivalent": sum(row["verdict"] == "equivalent" for row in drawn),
            "unproven": len(open_),
            "full audits": sum(row["full"] for row in drawn),
        },
        "weights": _counted(drawn, "weights"),
        "inputs": _counted(drawn, "inputs"),
        "types": _counted(drawn, "type"),
        "rewrites": [_row(name, drawn) for name in sorted({row["source"] for row in drawn})],
        "false alarms": [dict(row) for row in drawn if row["verdict"] == "different"],
        "reasons": _reasons(open_),
    }


def _row(name: str, drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [row for row in drawn if row["source"] == name]
    verdicts = Counter(row["verdict"] for row in rows)
    grades = Counter(row["grade"] for row in rows if row["verdict"] == "equivalent")
    return {
        "name": name,
        "tried": len(rows),
        "different": verdicts["different"],
        "equivalent": verdicts["equivalent"],
        "grades": dict(sorted(grades.items())),
        "unproven": verdicts["approximate"] + verdicts["not_verified"],
    }


def _counted(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, int]:
    return dict(Counter(row[key] for row in rows).most_common())


def _reasons(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        reason = row["reason"].partition(" First: ")[0]
        entry = found.setdefault(f"{row['source']}: {reason}", {"count": 0, "case": f"seed {row['seed']}"})
        entry["count"] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1]["count"]))


if __name__ == "__main__":
    sys.exit(main())
