"""A report as JUnit XML, the format of test results that CI services read: one test case for each thing checked.

The file is red exactly when the command's exit code is: `different` is a failure, and where nothing is proven
(`not_verified`, or an approximation that nobody asked for) there is an error, never only a skipped test, since CI
services call a build with skipped tests green.  Skipped are levels and outputs that could say nothing: where the
verdict needs them, it is red itself.

The elements and attributes are those that Jenkins' junit-10 schema, the Apache Ant schema and GitLab have in common.
An audit does not time its checks; `time` is 0, since the Ant schema demands it, and some readers show NaN without it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rewriter.equivalence.records import Audit, LevelResult, OutputAudit, RegionAudit
from rewriter.report.content import Case, Content, Fate, fate_of
from rewriter.report.record import VariantRecord
from rewriter.report.text import graded
from rewriter.report.text_audit import edge_text, float64_lines, output_table, region_details
from rewriter.report.text_variants import variant_line
from rewriter.visible import visible, visible_lines

_CHECKED: Final[Mapping[str, str]] = {
    "L0": "L0 interface and structure",
    "L4": "L4 outputs of the whole model",
    "L5": "L5 edges of the number range",
}
_PLURALS: Final[Mapping[Fate, str]] = {"failure": "failures", "error": "errors", "skipped": "skipped"}
"""Each fate that has an element of its own, with the attribute of a suite that counts them."""
_RED: Final = frozenset({"failure", "error"})


def junit(content: Content) -> bytes:
    """The report as a JUnit XML document in UTF-8."""
    root = ET.Element("testsuites", name=f"rewriter {content.command}", time="0")
    seen: Counter[tuple[str, str]] = Counter()
    for title, cases in _suites(content):
        root.append(_suite(content, title, cases, seen))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def audit_cases(audit: Audit, accepted: bool) -> tuple[Case, ...]:
    """The verdict, each level that concerns the whole model, each region, each output; one is red unless `accepted`."""
    fate = fate_of(audit.verdict, accepted)
    more = [edge_text(audit)] if audit.flags else []
    body = "\n".join(map(visible, [graded(audit.verdict, audit.grade), *more, *audit.notes]))
    verdict = Case("verdict", "verdict", fate, audit.reason, body, audit.verdict)
    regions = tuple(_region_case(number, region) for number, region in enumerate(audit.regions, 1))
    found = (verdict, *map(_level_case, audit.levels), *regions, *map(_output_case, audit.outputs))
    return tuple(replace(case, fate="skipped") if case.fate in _RED else case for case in found) if accepted else found


def _level_case(entry: LevelResult) -> Case:
    fate: Fate = "passed" if entry.outcome == "pass" else "failure" if entry.outcome == "fail" else "skipped"
    figures = [f"{name}: {value}" for name, value in entry.figures.items()]
    body = "\n".join([f"{entry.level} {entry.outcome}: {entry.detail}", *figures])
    return Case("levels", _CHECKED.get(entry.level, entry.level), fate, entry.detail, body, entry.outcome)


def _region_case(number: int, region: RegionAudit) -> Case:
    fate = fate_of(region.verdict, region.accepted)
    name = f"region {', '.join(region.outputs)}"
    return Case("regions", name, fate, region.reason, region_details(number, region), region.verdict)


def _output_case(entry: OutputAudit) -> Case:
    table = output_table([entry])
    told = [f"{column or 'result'}: {cell}" for column, cell in zip(table.columns, table.rows[0], strict=True)]
    message = ""
    fate: Fate = "passed"
    if not entry.compared:
        message, fate = "Nothing was learned: never finite, empty, or the same whatever the input.", "skipped"
    elif not entry.ratio <= 1:
        message, fate = f"The error is {entry.ratio:.3g} times what is allowed.", "failure"
    body = "\n".join([*map(visible, told), *map(str, float64_lines([entry]))])
    return Case("outputs", f"output {entry.name}", fate, message, body)


def _suites(content: Content) -> Iterator[tuple[str, Sequence[Case]]]:
    """Each suite's title, "" where it needs none, and its cases."""
    if content.cases:
        yield "", content.cases
    for section in content.sections:
        found, accepted, title = section.audit, section.accepted, section.title
        while found:
            yield title, audit_cases(found, accepted)
            found, title = found.deployed, f"{title} in TF32, as deployed".strip()
            accepted = accepted or (found is not None and found.verdict == "equivalent")


def _suite(content: Content, title: str, cases: Sequence[Case], seen: Counter[tuple[str, str]]) -> ET.Element:
    command = f"rewriter {content.command}"
    suite = ET.Element("testsuite", name=visible(f"{command}: {title}" if title else command), time="0")
    for name, count in [("tests", len(cases)), *((plural, _count(cases, fate)) for fate, plural in _PLURALS.items())]:
        suite.set(name, str(count))
    judged = content.data["after"] or content.data["before"]
    if judged["path"]:
        suite.set("file", visible(judged["path"]))  # where annotations of code hosts go, if they know the file
    properties = ET.SubElement(suite, "properties")
    for name, value in _facts(content.data):
        ET.SubElement(properties, "property", name=visible(name), value=visible(value))
    package = ".".join(filter(None, ("rewriter", content.command, re.sub(r"\W+", "_", title))))
    for case in cases:
        group, name = f"{package}.{case.group}", visible(case.name)
        seen[group, name] += 1  # services tell test cases apart by these two
        again = f" ({seen[group, name]})" if seen[group, name] > 1 else ""
        suite.append(_element(case, group, name + again))
    return suite


def _count(cases: Sequence[Case], fate: Fate) -> int:
    return sum(case.fate == fate for case in cases)


def _element(case: Case, group: str, name: str) -> ET.Element:
    made = ET.Element("testcase", classname=group, name=name, time="0")
    body = "\n".join(visible_lines(case.body))
    if case.fate == "passed":
        if body:
            ET.SubElement(made, "system-out").text = body
        return made
    found = ET.SubElement(made, case.fate, message=visible(case.message), type=case.found or case.fate)
    found.text = body
    return made


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was judged, and where: the files with their hashes, the models that were considered, the environment."""
    for side in ("before", "after"):
        if data[side] is not None:
            yield side, data[side]["path"] or "not written"
            yield f"{side}.sha256", data[side]["sha256"]
    if "objective" in data:
        yield "objective", data["objective"]
    for number, one in enumerate(data.get("variants", ())):
        yield f"variant {number}: {one['name']}", variant_line(VariantRecord.model_validate(one))
    yield from data["environment"].items()
