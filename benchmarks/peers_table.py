"""The README's table of models: this tool, the best of the others that make files, and OpenVINO; from peers.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.peer_tools import OPENVINO, OWN, REWRITERS, TOOLS
from benchmarks.peers import called
from benchmarks.peers_figures import Row, best_other, by_setting, figure, is_irregular, mean


def section(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown: the rows of the first setting, and the means of every one."""
    settings = by_setting(found["rows"])
    threads, rows = next(iter(settings.items()))
    yield (
        f"Times as fast as plain ONNX Runtime at {called(threads)}, each row one interleaved run, with 95 % intervals; "
        "[docs/peers.md](docs/peers.md) has every tool, both settings, the fraction of the roofline, and what each "
        "tool takes:"
    )
    yield ""
    yield (
        f"| model | rewriter | best of {', '.join(REWRITERS)} | OpenVINO | verdict | rewrites "
        "| search, timing and audit |"
    )
    yield "|---|---|---|---|---|---|---|"
    yield from (_line(row) for row in rows)
    for each, some in settings.items():
        odd = [row for row in some if is_irregular(row)]
        yield from _means(f"all {len(some)}, {called(each)}", some)
        yield from _means(f"{len(odd)} with grouped or unaligned convolutions, {called(each)}", odd)
    if any(figure(row, tool).blind for row in rows for tool in TOOLS):
        yield ""
        yield "† Compared by outputs that hardly depend on the input, which shows little."


def _line(row: Row) -> str:
    own, best = row["own"], best_other(row)
    other = "–" if best is None else f"{best[1]}, {best[0]}"
    if own is None:
        done = "– | – | –"
    else:
        grade = f" ({own['grade']})" if own["grade"] else ""
        done = f"{own['verdict']}{grade} | {own['rewrites'] if own['changed'] else 0} | {own['seconds']:.0f} s"
    return f"| {row['model']} | {figure(row, OWN)} | {other} | {figure(row, OPENVINO)} | {done} |"


def _means(of: str, rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    tool = max(REWRITERS, key=lambda tool: mean(rows, tool))
    own, best, openvino = (f"{mean(rows, one):.2f}×" for one in (OWN, tool, OPENVINO))
    yield f"| geometric mean, {of} | {own} | {best}, {tool} | {openvino} | | | |"
