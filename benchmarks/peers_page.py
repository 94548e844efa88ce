"""Put the results of benchmarks/peers.py into docs/peers.md, with a picture of each setting.

python -m benchmarks.peers_page [--check]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.peer_check import TOLERANCE
from benchmarks.peer_tools import OPENVINO, OWN, ROOT
from benchmarks.peers import RESULTS, called, read
from benchmarks.peers_figures import (
    SHOWN,
    Row,
    by_setting,
    dense_gflops,
    figure,
    is_irregular,
    mean,
    reasons,
    roofline,
)
from benchmarks.peers_plot import digest, picture

PAGE: Final = ROOT / "docs" / "peers.md"
PICTURES: Final = ROOT / "docs" / "pictures"
_TITLES: Final = {OPENVINO: "OpenVINO"}
_HOW: Final = f"""
## How it was measured

`make peers`, which installs the tools, runs benchmarks/peers.py and builds this page. Each row is one interleaved run:
the original twice (the second time as control), every tool's file in ONNX Runtime, OpenVINO, and a chain of dense
convolutions take turns in short blocks, in random order and back. A speed-up is the median over the rounds of
the original's time by the contender's, with the 95 % interval of that median. Weights are random, drawn as the
originals' are distributed; inputs are random with batch 1. Each tool runs with its defaults.

OpenVINO runs the original file in float32, with one stream, as many threads as ONNX Runtime, and its inputs fixed to
the shapes of the run. It reads the inputs in place, as ONNX Runtime does.

Before it is timed, each contender's outputs for two inputs are compared with the original's: they have to be within
{TOLERANCE:g} of the largest number. Who is not gets a word in place of a speed-up, and counts as 1 in the means. So
does who makes no file: one then keeps the original. `unchanged` counts as 1, too: the file is the same, byte for
byte. That the outputs are near is no proof; [third-party.md](third-party.md) has the audits of other tools' files.

Models with grouped or unaligned convolutions have convolutions with groups other than depthwise ones with as many
channels out as in, or convolutions with numbers of channels that ONNX Runtime's blocked layout does not take (16 or
more that enter a dense one, or any of a depthwise one, no multiple of 4). This is decided from the graph.
"""


def main() -> int:
    """Write the page and the pictures, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something is out of date")
    if parser.parse_args().check:
        stale = list(differences(read(RESULTS)))
        sys.stdout.writelines(f"{line}\n" for line in stale)
        return int(bool(stale))
    found = read(RESULTS)
    if not found["rows"]:
        sys.stderr.write("There are no results: run python -m benchmarks.peers first.\n")
        return 2
    for threads, rows in by_setting(found["rows"]).items():
        text = picture(rows, f"Speed-up over plain ONNX Runtime, {called(threads)}")
        picture_of(threads).write_text(text, encoding="utf-8", newline="\n")
    PAGE.write_text(page(found), encoding="utf-8", newline="\n")
    sys.stdout.write("docs/peers.md and its pictures hold the results of benchmarks/results/peers.json.\n")
    return 0


def differences(found: Mapping[str, Any]) -> Iterator[str]:
    """One line for each file that is not of these results; a picture says itself of which it is."""
    again = "run python -m benchmarks.peers_page"
    settings = by_setting(found["rows"])
    if PAGE.exists() != bool(settings) or (settings and PAGE.read_text(encoding="utf-8") != page(found)):
        yield f"docs/{PAGE.name} is not what the results give: {again}"
    wanted = {picture_of(threads): digest(rows) for threads, rows in settings.items()}
    for path in sorted({*wanted, *PICTURES.glob("peers*.svg")}):
        if path not in wanted or not path.exists() or wanted[path] not in path.read_text(encoding="utf-8"):
            yield f"docs/pictures/{path.name} is not of the results: {again}"


def picture_of(threads: int) -> Path:
    """Where the picture of a setting is."""
    return PICTURES / f"peers-{called(threads).replace(' ', '-')}.svg"


def page(found: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    settings = by_setting(found["rows"])
    lines = [
        "<!-- Built by benchmarks/peers_page.py from benchmarks/results/peers.json. -->",
        "",
        "# Beside other tools",
        "",
        "The zoo's models as other tools rewrite them and as this one does, in ONNX Runtime, and in OpenVINO: how many "
        "times as fast as the original in plain ONNX Runtime, with 95 % intervals.",
        "",
        where(found["environment"]),
    ]
    for threads, rows in settings.items():
        lines += ["", f"## {called(threads).capitalize()}", "", *_speeds(rows, threads)]
    lines += [_HOW.rstrip(), "", "## What part of the machine is used", "", *_ROOFLINE]
    for threads, rows in settings.items():
        lines += ["", f"### {called(threads).capitalize()}, of the dense rate", "", *_rooflines(rows)]
    lines += ["", "## What the tools take", "", *_COSTS]
    for threads, rows in settings.items():
        lines += ["", f"### {called(threads).capitalize()}, seconds and MiB", "", *_costs(rows)]
    lines += ["", "## What this tool did", ""]
    for threads, rows in settings.items():
        lines += ["", f"### {called(threads).capitalize()}, rewrites", "", *_own(rows)]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


_ROOFLINE: Final = (
    "The useful multiplications of all Conv, Gemm and MatMul nodes of the original (borders counted as the rest, "
    "zeros that a rewrite adds not counted), as a part of what the fastest dense convolution does in the same time, "
    "number of threads and run. Its rate here is the median over the models.",
)
_COSTS: Final = (
    "Each in a process of its own, Python's start, loading and saving included. For OpenVINO it is what reading and "
    "compiling the model takes. This tool searches for as long as its budget allows, times, and audits.",
)


def where(facts: Mapping[str, str]) -> str:
    """The machine and the versions."""
    tools = ", ".join(f"{_TITLES.get(tool, tool)} {facts[tool]}" for tool in SHOWN if tool != OWN)
    return (
        f"{facts['processor']}, {facts['cores']} cores, ONNX Runtime {facts['onnxruntime']}, {tools}, "
        f"Python {facts['python']}. A shared machine: read the ratios."
    )


def _speeds(rows: Sequence[Row], threads: int) -> Iterator[str]:
    yield f"![Speed-ups, {called(threads)}](pictures/{picture_of(threads).name})"
    yield ""
    yield f"| model | original, ms | original again | {_titles(SHOWN)} |"
    yield f"|---|---|---|{'---|' * len(SHOWN)}"
    for row in rows:
        figures = " | ".join(str(figure(row, tool)) for tool in SHOWN)
        yield f"| {row['model']} | {_original(row)} | {figures} |"
    odd = [row for row in rows if is_irregular(row)]
    for name, some in ((f"all {len(rows)}", rows), (f"the {len(odd)} with grouped or unaligned convolutions", odd)):
        if some:
            means = " | ".join(f"{mean(some, tool):.2f}×" for tool in SHOWN)
            yield f"| **geometric mean**, {name} | | | {means} |"
    missing = [f"- {_prose(row['model'])}: {_prose(reason)}" for row in rows for reason in reasons(row)]
    yield from ["", "Without a figure:", "", *missing] if missing else []
    if any(figure(row, tool).blind for row in rows for tool in SHOWN):
        yield ""
        yield "† Within the tolerance, but these outputs hardly depend on the input, so the comparison shows little."


def _original(row: Row) -> str:
    """Its milliseconds, and the interval of its ratio with itself: what is inside of that may be no effect."""
    if row["original"] is None:
        return "– | –"
    control = row["original"]["control_interval"]
    between = "–" if control is None else f"{control[0]:.2f} to {control[1]:.2f}"
    return f"{row['original']['ms']:.1f} | {between}"


def _rooflines(rows: Sequence[Row]) -> Iterator[str]:
    rates = [rate for rate in map(dense_gflops, rows) if rate is not None]
    if rates:
        kinds = ", ".join(dict.fromkeys(row["dense"]["what"] for row in rows if row["dense"]))
        yield f"The dense convolution ({kinds}): {statistics.median(rates):.0f} GFLOP/s."
        yield ""
    yield "| model | 10⁹ multiplications | original | OpenVINO | rewriter |"
    yield "|---|---|---|---|---|"
    for row in rows:
        useful = row["work"]["multiplications"]
        told = "–" if useful is None else f"{useful / 1e9:.2f}"
        parts = " | ".join(_percent(roofline(row, tool)) for tool in ("", OPENVINO, OWN))
        yield f"| {row['model']} | {told} | {parts} |"


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.0f} %"


def _costs(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| model | {_titles(SHOWN)} |"
    yield f"|---|{'---|' * len(SHOWN)}"
    for row in rows:
        yield f"| {row['model']} | {' | '.join(_cost(row['tools'][tool]) for tool in SHOWN)} |"

    medians = [{key: _median(rows, tool, key) for key in ("seconds", "peak_mib")} for tool in SHOWN]
    yield f"| **median** | {' | '.join(_cost(one) for one in medians)} |"


def _median(rows: Sequence[Row], tool: str, key: str) -> float | None:
    known = [row["tools"][tool][key] for row in rows if row["tools"][tool][key] is not None]
    return statistics.median(known) if known else None


def _cost(made: Mapping[str, Any]) -> str:
    seconds = "–" if made["seconds"] is None else f"{made['seconds']:.1f} s"
    memory = "–" if made["peak_mib"] is None else f"{made['peak_mib']:.0f} MiB"
    return f"{seconds}, {memory}"


def _own(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | verdict | rewrites | search, timing and audit | what was done, or why nothing |"
    yield "|---|---|---|---|---|"
    for row in rows:
        own = row["own"]
        if own is None:
            yield f"| {row['model']} | – | – | – | {_prose(row['tools'][OWN]['problem'])} |"
            continue
        done = "; ".join(f"{count} × {what}" for what, count in own["kept"].items())
        why = done if own["changed"] else own["reason"]
        grade = f" ({own['grade']})" if own["grade"] else ""
        yield (
            f"| {row['model']} | {own['verdict']}{grade} | {own['rewrites'] if own['changed'] else 0} | "
            f"{own['seconds']:.0f} s | {_prose(why)} |"
        )


def _titles(tools: Sequence[str]) -> str:
    return " | ".join(_TITLES.get(tool, tool) for tool in tools)


def _prose(text: str) -> str:
    for sign in ("_", "|", "*", "<"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
