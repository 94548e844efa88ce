"""docs/passes is what docs/build.py makes of the passes and their examples, and its pictures can be read."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs import build
from docs.build import FOLDER, Incomplete, differences, pages, picture
from docs.examples import EXAMPLES
from docs.picture import before_and_after
from rewriter.registry import all_passes

SVG = "{http://www.w3.org/2000/svg}"
PASSES = tuple(all_passes())


def test_the_committed_pages_are_what_is_built() -> None:
    assert sorted(differences(pages(all_passes(), EXAMPLES), FOLDER)) == []


def test_a_pass_without_an_example_is_told_what_to_add() -> None:
    others = {name: example for name, example in EXAMPLES.items() if name != "regroup"}
    says = r"the pass 'regroup' has no example: add a graph .* EXAMPLES\['regroup'\] in docs/examples.py, and run"
    with pytest.raises(Incomplete, match=says):
        pages(all_passes(), others)


def test_an_example_without_a_pass_is_told_to_go() -> None:
    with pytest.raises(Incomplete, match="an example of 'gone', and there is no such pass: remove it"):
        pages(all_passes(), {**EXAMPLES, "gone": EXAMPLES["regroup"]})


def test_an_example_that_its_pass_declines_gives_the_reason() -> None:
    dense = replace(EXAMPLES["dense-to-grouped"], settings={"groups": 2})
    with pytest.raises(Incomplete, match=r"'regroup' does not apply to its example in docs/examples.py: .+\."):
        pages(all_passes(), {**EXAMPLES, "regroup": dense})


def test_check_finds_what_is_stale_and_a_run_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["build", *arguments])
        return build.main()

    assert run() == 0
    assert run("--check") == 0
    (tmp_path / "regroup.md").write_text("edited by hand")
    (tmp_path / "gone.svg").write_text("of a pass that is no more")
    (tmp_path / "README.md").unlink()
    capsys.readouterr()
    assert run("--check") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0].rpartition("/")[2] for line in said] == ["README.md", "gone.svg", "regroup.md"]
    assert (tmp_path / "regroup.md").read_text() == "edited by hand"
    assert run() == 0
    assert run("--check") == 0


@pytest.mark.parametrize("name", PASSES)
def test_a_page_has_all_of_the_docstring(name: str) -> None:
    module = sys.modules[type(all_passes()[name]).__module__]
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    said = re.sub(r"```text|[`*\\]|\s", "", text)
    for line in (module.__doc__ or "").splitlines()[1:]:
        assert re.sub(r"[`*\\]|\s", "", line) in said, line
    assert text.count("```") % 2 == 0
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (FOLDER / target).exists(), target


def test_prose_is_escaped_and_code_is_not() -> None:
    assert build._prose("W [C, *K] of `f*C` and f*C, a < b, x_p") == r"W [C, \*K] of `f*C` and f\*C, a \< b, x\_p"
    text = "\n\n    y = a*b\n    z = c\n\nSafety: EXACT, 2*3.\nand so on\nbecomes   y = a*b\n"
    assert list(build._body(text)) == [
        "```text",
        "y = a*b",
        "z = c",
        "```",
        "",
        r"**Safety:** EXACT, 2\*3.",
        "and so on",
        "",
        "```text",
        "becomes   y = a*b",
        "```",
        "",
    ]


# The pictures.


@pytest.mark.parametrize("name", PASSES)
def test_a_picture_shows_what_changes(name: str) -> None:
    text = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    before, after = root.findall(f"{SVG}g")
    assert [rect for rect in before.iter(f"{SVG}rect") if rect.get("class") == "removed"]
    assert [rect for rect in after.iter(f"{SVG}rect") if rect.get("class") == "added"]
    assert not [rect for rect in before.iter(f"{SVG}rect") if rect.get("class") == "added"]
    assert "prefers-color-scheme: dark" in text
    for foreign in ("href", "@import", "@font-face", "url(", "<script", "<image", "<foreignObject"):
        assert foreign not in text
    assert text.count("http") == 1  # the name of the SVG namespace


@pytest.mark.parametrize("name", PASSES)
def test_nothing_in_a_picture_covers_anything_else(name: str) -> None:
    root = ElementTree.fromstring((FOLDER / f"{name}.svg").read_text(encoding="utf-8"))
    _, _, width, height = (float(word) for word in root.get("viewBox", "").split())
    placed = []
    for group in root.findall(f"{SVG}g"):
        x, y = (float(word) for word in re.findall(r"[\d.]+", group.get("transform", "")))
        for rect in group.iter(f"{SVG}rect"):
            left, top, wide, high = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
            placed.append((x + left, y + top, x + left + wide, y + top + high))
    assert len(placed) >= 6
    for left, top, right, bottom in placed:
        assert min(left, top) >= 0
        assert right <= width
        assert bottom <= height
    for (a, b, c, d), (e, f, g, h) in combinations(placed, 2):
        assert c <= e or g <= a or d <= f or h <= b


def test_a_picture_is_the_same_twice_and_wide_ones_go_below_each_other() -> None:
    rule, example = all_passes()["split-groups"], EXAMPLES["split-groups"]
    assert picture(rule, example) == picture(rule, example)
    wide = replace(
        example,
        graph=example.graph.replace("group = 2", "group = 8").replace("[1,8,", "[1,16,"),
        weights={"w": (16, 2, 3, 3), "b": (16,)},
    )
    root = ElementTree.fromstring(picture(rule, wide))
    before, after = (re.findall(r"[\d.]+", group.get("transform", "")) for group in root.findall(f"{SVG}g"))
    assert before[0] == after[0]
    assert float(before[1]) < float(after[1])


def test_a_node_that_stays_is_not_marked() -> None:
    model = EXAMPLES["fuse-separable"].model()
    root = ElementTree.fromstring(before_and_after(model, model, "nothing"))
    for group in root.findall(f"{SVG}g"):
        kinds = [rect.get("class") for rect in group.iter(f"{SVG}rect")]
        assert sorted(str(kind) for kind in kinds) == ["box", "box", "end", "end"]
