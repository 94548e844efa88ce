"""Build docs/passes: a page and a picture for each pass, from its docstring and its example in docs/examples.py.

And docs/forms.md, by docs/forms.py, docs/channels.md with its pictures, by docs/channels.py,
docs/certificate.schema.json, by docs/certificate_schema.py, docs/wrong-rewrites.md, by docs/wrong_rewrites.py, and
docs/polygraphy.md, by docs/polygraphy_page.py.

python -m docs.build [--check]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from docs import certificate_schema, channels, forms, polygraphy_page, wrong_rewrites
from docs.examples import EXAMPLES, Example
from docs.picture import before_and_after
from rewriter import Pass
from rewriter.model import Model
from rewriter.propose import Step, sweep
from rewriter.registry import all_passes

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "passes"
_LABELS = (
    "Settings",
    "Setting",
    "Conditions",
    "What `optimize` measures",
    "Safety",
    "Source",
    "Use",
    "Rank",
    "Border rule",
)


class Incomplete(Exception):
    """A page cannot be made; the message says what to add where."""


def main() -> int:
    """Write the pages, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is out of date")
    check = parser.parse_args().check
    try:
        wanted = pages(all_passes(), EXAMPLES)
    except Incomplete as error:
        sys.stderr.write(f"docs.build: {error}\n")
        return 1
    others = (forms, channels, certificate_schema, wrong_rewrites, polygraphy_page)
    stale = [*sorted(differences(wanted, FOLDER)), *(line for other in others for line in other.stale())]
    if check:
        sys.stdout.writelines(f"{line}\n" for line in stale)
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
    for other in others:
        if other.stale():
            other.write()
    count = len(wanted) + len(others) - 1 + len(channels.wanted())
    sys.stdout.write(f"docs/passes and the pages from results: {count} files, {len(stale)} new, changed or gone\n")
    return 0


def differences(wanted: Mapping[str, str], folder: Path) -> Iterator[str]:
    """One line for each file that is not as wanted."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*")}
    for name in wanted.keys() | there.keys():
        if wanted.get(name) != there.get(name):
            yield f"docs/passes/{name} is not what its pass and docs/examples.py give: run python -m docs.build"


def pages(passes: Mapping[str, Pass], examples: Mapping[str, Example]) -> dict[str, str]:
    """The text of every file of docs/passes by name; raises Incomplete where a pass has no example that works."""
    for name in examples:
        if name not in passes:
            raise Incomplete(f"docs/examples.py has an example of '{name}', and there is no such pass: remove it.")
    made = {"README.md": _index(passes)}
    for name, rule in passes.items():
        if name not in examples:
            raise Incomplete(
                f"the pass '{name}' has no example: add a graph of a few nodes that it applies to, as "
                f"EXAMPLES['{name}'] in docs/examples.py, and run python -m docs.build."
            )
        made[f"{name}.svg"] = picture(rule, examples[name])
        made[f"{name}.md"] = page(rule, examples[name])
    return made


def picture(rule: Pass, example: Example) -> str:
    """The example before and after the pass."""
    model = Model.load(example.model())
    after, applied, attempts = sweep(model, Step(rule, example.settings), {})
    if not applied:
        reasons = " ".join(attempt.reason for attempt in attempts) or "Nothing matched."
        raise Incomplete(f"the pass '{rule.name}' does not apply to its example in docs/examples.py: {reasons}")
    return before_and_after(model.to_proto(), after.to_proto(), f"{rule.name}: {example.caption}")


def page(rule: Pass, example: Example) -> str:
    """The page as Markdown."""
    module = inspect.getmodule(type(rule))
    assert module is not None
    first, _, rest = (module.__doc__ or "").partition("\n")
    path = f"passes/{module.__name__.rpartition('.')[2]}.py"
    settings = "".join(f", `--set {rule.name}.{key}={value}`" for key, value in example.settings.items())
    lines = [
        f"<!-- Built by docs/build.py from {path} and docs/examples.py: edit those. -->",
        "",
        f"# {rule.name}",
        "",
        _prose(_sentence(first.partition(": ")[2])),
        "",
        f"![{rule.name}, before and after]({rule.name}.svg)",
        "",
        f"Example: {_prose(example.caption)}{settings}.",
        "",
        *_body(rest),
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(rule)),
        f"| in | [{path}](../../{path}) |",
    ]
    return "\n".join(lines) + "\n"


def _facts(rule: Pass) -> Iterator[tuple[str, str]]:
    what = (inspect.getdoc(type(rule)) or "").splitlines()[0].rstrip(".")
    yield "what it does", _prose(what).replace("|", "\\|")
    yield "safety", f"`{rule.safety.name}`: {rule.safety.value}"
    if rule.defaults:
        yield "settings", ", ".join(f"`{rule.name}.{key}={value}`" for key, value in rule.defaults.items())
    if rule.needs:
        yield "needs", ", ".join(f"`--allow {name}`" for name in sorted(rule.needs))
    if rule.takes:
        yield "takes the form", f"`{rule.takes}`"
    if rule.gives:
        yield "gives the form", f"`{rule.gives}`"


def _body(text: str) -> Iterator[str]:
    """The docstring behind its first line: indented blocks as code; labels like `Safety:` in bold, a paragraph each."""
    label = re.compile(rf"^({'|'.join(_LABELS)}):")
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        code: list[str] = []
        prose: list[str] = []
        for line in block.splitlines():
            if line.startswith("    ") or "   " in line.strip():  # an equation that begins with a word
                yield from _paragraph(prose)
                prose = []
                code.append(line.removeprefix("    "))
                continue
            yield from _code(code)
            code = []
            found = label.match(line)
            if found:
                yield from _paragraph(prose)
                prose = [f"**{found.group(1)}:**{_prose(line[found.end() :])}"]
            else:
                prose.append(_prose(line))
        yield from _code(code)
        yield from _paragraph(prose)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _paragraph(lines: list[str]) -> list[str]:
    return [*lines, ""] if lines else []


def _code(lines: list[str]) -> list[str]:
    return ["```text", *lines, "```", ""] if lines else []


def _prose(text: str) -> str:
    """A line with the signs escaped that Markdown would read, outside of code."""
    parts = text.split("`")
    escaped = [re.sub(r"([*<_])", r"\\\1", part) if at % 2 == 0 else part for at, part in enumerate(parts)]
    return "`".join(escaped)


def _index(passes: Mapping[str, Pass]) -> str:
    lines = [
        "<!-- Built by docs/build.py: edit the passes and docs/examples.py. -->",
        "",
        "# Passes",
        "",
        "One page each, built from the pass's own documentation by `python -m docs.build`.",
        "[Which form of a convolution they turn into which](../forms.md), and on how many models that was tried.",
        "",
        "| pass | what it does | safety |",
        "|---|---|---|",
    ]
    for name, rule in passes.items():
        facts = dict(_facts(rule))
        lines.append(f"| [{name}]({name}.md) | {facts['what it does']} | {rule.safety.name} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
