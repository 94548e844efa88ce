"""Reports in every format: readable by what reads such files, whatever names a model holds."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import example, given
from junitparser import JUnitXml

from report_files import (
    ALL,
    HOSTILE,
    RENDERER,
    REWRITE,
    SUFFIXES,
    audit,
    content,
    hostile,
    names,
    page,
    write_models,
)
from rewriter.cli import main
from rewriter.errors import BadInput
from rewriter.report import formats
from rewriter.report.content import Content
from rewriter.report.formats import FORMATS, render
from rewriter.report.markdown import escaped
from rewriter.visible import visible

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@given(names)
@example("a|b")
def test_names_cannot_break_markdown(name: str) -> None:
    if not visible(name).strip():
        name = f"{name}x"  # an empty heading and an empty line have no elements
    shape, text = page(render(".md", hostile(name)).decode())
    expected, plain = page(render(".md", hostile("PLAIN")).decode())
    assert shape == expected
    assert text == [" ".join(part.replace("PLAIN", visible(name)).split()) for part in plain]


@given(names)
def test_escaped_text_reads_as_it_is(name: str) -> None:
    rendered = RENDERER.renderInline(escaped(name))
    assert html.unescape(re.sub("</?span>", "", rendered)) == visible(name).strip()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("/block1/conv_1/Conv_output_0: 1.5e-07", "/block1/conv_1/Conv_output_0: 1.5e-07"),
        ("Conv -> Conv", "Conv -> Conv"),
        ("21.9 MB", "21.9 MB"),
        ("see https://a.b", "see https:\\//a.b"),
        ("@a $ #1 :x:", "<span>@</span>a <span>$</span> <span>#</span>1 <span>:</span>x:"),
    ],
)
def test_only_what_would_do_something_is_escaped(text: str, written: str) -> None:
    assert escaped(text) == written


def test_markdown_shows_every_level_of_every_region(folder: Path) -> None:
    assert main([*REWRITE, "--report", "r.md"]) == 0
    text = Path("r.md").read_text()
    assert text.count("- Region ") == 2
    assert "<summary>Every region, level by level</summary>" in text
    assert "\n\n\n" not in text
    elements, _ = page(text)
    assert elements.count("table") >= 5
    assert elements.count("ul") == 3, "the regions, and the levels of each"


@given(names)
def test_every_format_holds_every_name(name: str) -> None:
    made = hostile(name)
    document = ET.fromstring(render(".xml", made))
    shown = visible(name)
    assert [case.get("name") for case in document.iter("testcase")][-2:] == [f"output {shown}", f"output {shown} (2)"]
    assert json.loads(render(".json", made))["before"]["path"] == name
    text = render(".txt", made).decode()
    assert text.splitlines()[-1:] == ([shown] if shown else [""])
    assert not re.search(r"[^\n -~\xa1-\U0010ffff]", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_format_depends_on_what_an_xml_library_lets_through(name: str) -> None:
    written = render(".xml", hostile(name)).decode("utf-8")
    assert not re.search("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", written)
    assert JUnitXml.fromstring(written.encode()).tests == 8


@pytest.mark.parametrize("command", [("audit", "dense.onnx", "wrong.onnx"), (*REWRITE, "-v")], ids=["audit", "rewrite"])
def test_text_is_what_the_command_prints(command: tuple[str, ...], folder: Path, capsys: Captured) -> None:
    main([*command, "--report", "r.txt"])
    assert Path("r.txt").read_text() == capsys.readouterr().out
    assert "\x1b" not in Path("r.txt").read_text()


def test_text_is_whole_where_the_command_is_quiet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*REWRITE, "--report", "a.txt"]) == 0
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*REWRITE, "-q", "--report", "b.txt"]) == 0
    assert Path("a.txt").read_bytes() == Path("b.txt").read_bytes()
    assert Path("a.txt").read_text().count("\n") > 5


def test_a_suffix_that_is_no_format(folder: Path, capsys: Captured) -> None:
    assert main([*REWRITE, "--report", "report.html"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("'report.html' names no format of reports: there are .txt, .json, .md and .xml.")
    assert not (folder / "out.onnx").exists()
    with pytest.raises(BadInput, match=r"there are \.txt, \.json, \.md and \.xml"):
        render("", content(audit()))


def test_suffixes_in_capitals(folder: Path) -> None:
    assert main([*REWRITE, *(part for suffix in SUFFIXES for part in ("--report", f"R{suffix.upper()}"))]) == 0
    assert JUnitXml.fromfile("R.XML").tests > 0
    assert json.loads(Path("R.JSON").read_text())["verdict"] == "equivalent"


@pytest.mark.parametrize("broken", SUFFIXES)
def test_all_or_none(broken: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_content: Content) -> bytes:
        raise BadInput("it cannot be written.")

    monkeypatch.setattr(formats, "FORMATS", {**FORMATS, broken: fail})
    before = {path.name for path in folder.iterdir()}
    assert main([*REWRITE, *ALL]) == 2
    assert {path.name for path in folder.iterdir()} == before


def test_reports_are_the_same_bytes_again(folder: Path) -> None:
    assert main(["audit", "dense.onnx", "wrong.onnx", *ALL]) == 1
    first = {suffix: Path(f"r{suffix}").read_bytes() for suffix in SUFFIXES}
    assert main(["audit", "dense.onnx", "wrong.onnx", *ALL]) == 1
    assert {suffix: Path(f"r{suffix}").read_bytes() for suffix in SUFFIXES} == first


def test_the_template_is_part_of_the_package() -> None:
    assert resources.files("rewriter.report").joinpath("report.md.j2").is_file()
