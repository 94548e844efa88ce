"""Reports for tests: models to report on, made-up audits, hostile names, and readers that are none of ours."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from junitparser import JUnitXml, TestCase
from markdown_it import MarkdownIt

from cli_runs import dense_model, small_network
from rewriter.equivalence import Audit
from rewriter.equivalence.records import LevelResult, OutputAudit, RegionAudit, Verdict, failed, not_applicable, passed
from rewriter.report.content import Case, Content, Section
from rewriter.report.formats import FORMATS
from rewriter.report.text import Table
from rewriter.report.text_audit import audit_blocks, audit_conclusion
from rewriter.visible import visible

SUFFIXES = tuple(FORMATS)
ALL = tuple(part for suffix in SUFFIXES for part in ("--report", f"r{suffix}"))
REWRITE = ("rewrite", "net.onnx", "-o", "out.onnx", "--pass", "regroup")


def write_models(folder: Path) -> None:
    """A network, one convolution, and the same convolution with one weight changed."""
    (folder / "net.onnx").write_bytes(small_network().SerializeToString())
    dense = dense_model()
    (folder / "dense.onnx").write_bytes(dense.SerializeToString())
    weight = onnx.numpy_helper.to_array(dense.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nextafter(weight[0, 0, 0, 0], np.float32(1))
    dense.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    (folder / "wrong.onnx").write_bytes(dense.SerializeToString())


def cases(path: str | Path = "r.xml") -> dict[tuple[str, str], TestCase]:
    """The test cases by class and name, which must tell them apart; the counts of their suites must be right."""
    document = JUnitXml.fromfile(str(path))
    found = [case for suite in document for case in suite]
    root = ET.parse(path).getroot()  # the library counts anew: what is written is read without it
    assert len(root) == len(list(document))
    for part in (root, *root):
        counts = {"tests": "testcase", "failures": "failure", "errors": "error"}
        counts |= {"skipped": "skipped"} if part is not root else {}
        assert {name: part.get(name) for name in counts} == {
            name: str(sum(1 for _ in part.iter(element))) for name, element in counts.items()
        }
    named = {(case.classname or "", case.name or ""): case for case in found}
    assert len(named) == len(found)
    assert found
    return named


def results(path: str | Path = "r.xml") -> dict[tuple[str, str], str]:
    """The element of each test case, "" for one that passed."""
    return {name: str(case.result[0]._tag) if case.result else "" for name, case in cases(path).items()}


def is_red(path: str | Path = "r.xml") -> bool:
    return bool({"failure", "error"} & set(results(path).values()))


def region(name: str = "y", verdict: Verdict = "equivalent", *levels: LevelResult) -> RegionAudit:
    return RegionAudit(
        inputs=("x",),
        outputs=(name,),
        before={"Conv": 1},
        after={name: 1},
        verdict=verdict,
        grade=None,
        levels=levels or (passed("L1", f"The weight '{name}' is the same."),),
        blind=None,
        reason=f"About '{name}'.",
    )


def output(name: str = "y", ratio: float = 0.5, compared: bool = True) -> OutputAudit:
    figures = dict.fromkeys(("max_abs", "max_rel", "tolerance", "spread"), 0.1)
    told = {"name": name, "shape": (1,), "dtype": "float32", "bitwise": False, "ratio": ratio, "compared": compared}
    return OutputAudit.model_validate({**figures, **told})


def audit(**changed: Any) -> Audit:
    plain: dict[str, Any] = {
        "verdict": "equivalent",
        "grade": "exact",
        "reason": "All is well.",
        "regions": (region(),),
        "levels": (passed("L0", "The interface is the same."),),
        "outputs": (output(),),
        "witnesses": (),
        "notes": (),
        "before_sha256": "0",
        "after_sha256": "1",
        "provider": "cpu",
        "threads": 1,
        "level": "all",
        "seed": 0,
    }
    return Audit(**(plain | changed))


def content(found: Audit, name: str = "y") -> Content:
    """A report on a made-up audit; `name` is also that of the files."""
    file = {"path": name, "sha256": "0", "bytes": 1, "nodes": 1, "ops": {}}
    data = {"before": file, "after": file, "environment": {"processor": name}, **found.to_dict()}
    blocks = tuple(audit_blocks(found, False))
    section = Section("", blocks, found, found.verdict == "equivalent")
    return Content("audit", data, blocks, audit_conclusion(found), (section,), (Case("more", name, "passed"),))


RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class _Words(HTMLParser):
    """The text of an HTML page, and its elements without it."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith(("on", "href", "src")) for name, _ in attrs)
        if tag != "span":  # it keeps a sign apart from what follows, and shows nothing
            self.shape.append(tag)
            self.text.append("\0")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(text: str) -> tuple[list[str], list[str]]:
    """The elements of a Markdown document, and the text of each, blanks as a browser shows them."""
    read = _Words()
    read.feed(RENDERER.render(text))
    read.close()
    return read.shape, [" ".join(part.split()) for part in "".join(read.text).split("\0")]


def told(path: str) -> str:
    return " ".join(page(Path(path).read_text())[1])


HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "&lt;&amp;]]>",
    "two\nlines\r\n\tand \x00 \x1b[31m \x85",
    "\ud800 \udcff \ufffe \u202e",
    "**bold** _low_ __init__ `code` ``` ~~~ ~~gone~~ \\| \\",
    "[link](https://example.com) ![picture](x) [^1] https://example.com www.example.com me@example.com",
    "# heading ##",
    "- item",
    "1. item",
    "    code",
    "---",
    "===",
    "| a | b |",
    "@someone #1 $x$ $$y$$ :smile:",
    "--- | ---",
    "",
    " ",
    "{{ 7 * 7 }} {% raw %}",
    "\"quoted\" 'quoted'",
)
names = st.sampled_from(HOSTILE) | st.text(max_size=12) | st.text(alphabet="|\\`*_~<>&[]()#@$:!-=+.1a \n", max_size=12)


def hostile(name: str) -> Content:
    """A report that holds the name everywhere it can be."""
    found = audit(
        verdict="different",
        reason=f"It is '{name}'.",
        regions=(region(name), region(name, "different", failed("L1", name), not_applicable("L2", name))),
        outputs=(output(name), output(name, 2.0)),
        levels=(passed("L0", name), failed("L4", name)),
        notes=(name,),
    )
    made = content(found, name)
    more = Section(name, (f"{visible(name)}\n{visible(name)} again", Table(("a", name), ((name, "b"), ("c", name)))))
    return replace(made, last=name, sections=(*made.sections, more), blocks=(*made.blocks, *more.blocks))
