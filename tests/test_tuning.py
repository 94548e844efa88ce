"""Tuning records: what is kept and recalled, what is refused, several processes, versions of the file, the command."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import rewriter.tuning.store as store_module
from models.resnext import ResNeXt, resnext_model
from rewriter.cli import main
from rewriter.errors import BadInput
from rewriter.graph import Graph
from rewriter.model import Model
from rewriter.options import RunOptions
from rewriter.propose import Applied, Step, ask
from rewriter.registry import pass_named
from rewriter.rule import Attempt
from rewriter.session import Runtime
from rewriter.tuning import (
    Environment,
    Measured,
    Memory,
    PlaceEntry,
    PlanEntry,
    PlanStep,
    Store,
    asked_digest,
    dump,
    environment_of,
    load,
)
from timings import timing

HERE = environment_of(Runtime())
ELSEWHERE = HERE.model_copy(update={"device": "another processor"})
KEY, OTHER = "ab" * 32, "cd" * 32
MEASURED = Measured(
    pass_name="regroup",
    settings={"groups": 4},
    verdict="FASTER",
    speedup=1.5,
    interval=(1.4, 1.6),
    control_interval=(0.99, 1.01),
    smallest_effect=0.01,
    before_ms=3.0,
    after_ms=2.0,
    pairs=9,
)


def place(key: str = KEY, environment: Environment = HERE, chosen: int | None = 0, days: float = 0) -> PlaceEntry:
    when = datetime.now(UTC) - timedelta(days=days)
    return PlaceEntry(environment=environment, key=key, site="y", measured=(MEASURED,), chosen=chosen, created=when)


def plan(environment: Environment = HERE, *, budget: float = 60.0, complete: bool = True) -> PlanEntry:
    step = PlanStep(pass_name="regroup", settings={"groups": 4}, site="y", why="1.50x", sure=True)
    return PlanEntry(
        environment=environment,
        model=KEY,
        asked=OTHER,
        steps=(step,),
        speedup=1.5,
        budget=budget,
        complete=complete,
        created=datetime.now(UTC),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "tuning.sqlite3")


def test_what_is_put_in_comes_out(store: Store) -> None:
    entry = place()
    store.add([entry], [plan()])
    assert Store(store.path).place(HERE, KEY) == entry
    assert Store(store.path).plan(HERE, KEY, OTHER) is not None
    assert store.place(HERE, OTHER) is None
    assert store.plan(HERE, OTHER, OTHER) is None


def test_another_machine_has_its_own(store: Store) -> None:
    store.add([place(environment=ELSEWHERE)], [plan(ELSEWHERE)])
    assert store.place(HERE, KEY) is None
    assert store.plan(HERE, KEY, OTHER) is None
    assert store.place(ELSEWHERE, KEY) is not None


@pytest.mark.parametrize(
    "changed",
    [{"threads": 2}, {"onnxruntime": "1.0"}, {"level": "basic"}, {"options": {"a": "b"}}, {"tool": "0"}, {"build": ""}],
)
def test_all_of_the_environment_counts(store: Store, changed: Mapping[str, Any]) -> None:
    store.add([place()], [])
    assert store.place(HERE.model_copy(update=dict(changed)), KEY) is None


def test_what_was_tampered_with_is_not_believed(store: Store) -> None:
    """A body of another key, a body that is no record, and one whose figures cannot be."""
    bodies = [
        place(key=OTHER).model_dump_json(),
        "{}",
        place().model_dump_json().replace('"speedup":1.5', '"speedup":-1'),
        place(environment=ELSEWHERE).model_dump_json(),
    ]
    for body in bodies:
        store.add([place()], [])
        with sqlite3.connect(store.path) as database:
            database.execute("UPDATE place SET body = ?", (body,))
        assert store.place(HERE, KEY) is None, body


@pytest.mark.parametrize(
    "changed",
    [
        {"speedup": float("nan")},
        {"speedup": 0.0},
        {"interval": (1.6, 1.4)},
        {"interval": None},
        {"interval": (0.9, 1.6)},
        {"verdict": "GREAT"},
        {"pairs": -1},
        {"before_ms": float("inf")},
        {"more": 1},
    ],
)
def test_figures_that_cannot_be_are_refused(changed: Mapping[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Measured.model_validate({**MEASURED.model_dump(), **changed})


def test_a_choice_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError):
        place(chosen=1)


@pytest.mark.parametrize("version", [len(store_module._MIGRATIONS) + 1, 99])
def test_a_newer_file_is_left_alone(store: Store, version: int) -> None:
    with sqlite3.connect(store.path) as database:
        database.execute(f"PRAGMA user_version = {version}")
    before = store.path.read_bytes()
    with pytest.raises(BadInput, match=f"version {version}, which a newer rewriter made"):
        Store(store.path)
    assert store.path.read_bytes() == before


def test_an_older_file_is_brought_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add([place()], [])
    more = (*store_module._MIGRATIONS, "CREATE TABLE extra (a TEXT)", "ALTER TABLE extra ADD COLUMN b TEXT")
    monkeypatch.setattr(store_module, "_MIGRATIONS", more)
    assert Store(store.path).place(HERE, KEY) is not None
    with sqlite3.connect(store.path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(more),)
        assert database.execute("SELECT count(b) FROM extra").fetchone() == (0,)


def test_all_of_what_is_put_in_or_nothing(store: Store) -> None:
    with pytest.raises(AttributeError):
        store.add([place()], [None])  # type: ignore[list-item]  # what fails behind the first that went in
    assert store.places() == []
    store.add([place()], [])
    assert len(store.places()) == 1


@pytest.mark.parametrize("content", [b"no database at all, and longer than a header" * 40, 0, 1])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes | int) -> None:
    """No database, one that says of no program that it is its own, and one that says it of another one."""
    path = tmp_path / "model.onnx"
    if isinstance(content, int):
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE mine (a TEXT)")
            database.execute(f"PRAGMA application_id = {content}")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"cannot be used|of another program"):
        Store(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_records_that_cannot_be_written_spoil_nothing(store: Store) -> None:
    store.path.write_bytes(b"damaged" * 1000)
    with pytest.raises(BadInput, match="cannot be used"):
        store.add([place()], [])
    with pytest.raises(BadInput, match="cannot be used"):
        store.place(HERE, KEY)
    assert Memory(store, HERE).recall("any", candidates()[:1]) is None


def test_where_no_file_can_be_one_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        Store(tmp_path / "file" / "tuning.sqlite3")


def test_several_processes_write_at_once(store: Store) -> None:
    code = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_tuning import Store, place
store = Store(Path(sys.argv[1]))
for number in range(25):
    store.add([place(key=f"{int(sys.argv[2]):032x}{number:032x}")], [])
"""
    root = Path(__file__).resolve().parents[1]
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(store.path), str(number)], cwd=root) for number in range(4)
    ]
    assert [process.wait(timeout=120) for process in started] == [0] * 4
    assert len(store.places()) == 100


def test_prune_by_age_by_machine_and_all(store: Store) -> None:
    store.add([place(), place(OTHER, days=40), place(KEY, ELSEWHERE)], [plan()])
    assert store.prune(before=(datetime.now(UTC) - timedelta(days=30)).isoformat()) == 1
    assert store.prune(keep=HERE.key) == 1
    assert store.prune() == 2
    assert not store.places()
    assert not store.plans()


def test_a_file_for_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_bytes(dump([place()], [plan()]))
    places, plans = load(path)
    assert (places[0].key, plans[0].model) == (KEY, KEY)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "schema: Field required"),
        ("no json", "the file: Invalid JSON"),
        ('{"schema": "https://onnx-conv-rewriter/records/2", "places": [], "plans": []}', "schema: Input should be"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=reason):
        load(path)


def candidates() -> list[Applied]:
    model = Model.load(resnext_model(ResNeXt(image=32, blocks=(1, 1), width=32, groups=16, classes=10)))
    graph = Graph(model, {})
    rule = pass_named("grouped-to-dense")
    found = [answer for node in rule.sites(graph) if not isinstance(answer := ask(graph, rule, node, {}), Attempt)]
    return [Applied(Step(rule, {}), made) for made in found][:2]


def test_only_what_an_audit_has_seen_is_recalled(store: Store) -> None:
    first, second = candidates()
    memory = Memory(store, HERE)
    for key, one, verdict in (("won", first, "FASTER"), ("lost", second, "SLOWER")):
        memory.note(key, [one], [timing(1.5 if verdict == "FASTER" else 0.5, verdict)])
        memory.same(key, [one])
    memory.took("won")
    assert memory.keep([]) == 1  # the winner was in no model that passed
    assert Memory(store, HERE).recall("won", [first]) is None
    assert Memory(store, HERE).recall("lost", [second]) is not None
    assert memory.keep([first]) == 2
    recalled = Memory(store, HERE).recall("won", [first])
    assert recalled is not None
    assert (recalled[0].verdict, recalled[0].speedup) == ("FASTER", 1.5)
    assert Memory(store, ELSEWHERE).recall("won", [first]) is None


def test_other_candidates_are_another_question(store: Store) -> None:
    first, _ = candidates()
    memory = Memory(store, HERE)
    memory.note("lost", [first], [timing(0.5, "SLOWER")])
    memory.keep([])
    assert Memory(store, HERE).recall("lost", [first, first]) is None
    other = Applied(Step(first.step.rule, {"parts": 2}), first.rewrite)
    assert Memory(store, HERE).recall("lost", [other]) is None


@pytest.mark.parametrize(("complete", "budget", "found"), [(True, 600, True), (False, 600, False), (False, 60, True)])
def test_a_larger_budget_looks_further(store: Store, complete: bool, budget: float, found: bool) -> None:
    store.add([], [plan(complete=complete)])
    assert (Memory(store, HERE).plan(KEY, OTHER, budget) is not None) == found


def test_what_is_asked_counts() -> None:
    plain = asked_digest({"a", "b"}, {}, RunOptions(), {"x": (1, 3)})
    assert plain == asked_digest(["b", "a"], {"a": {}}, RunOptions(), {"x": [1, 3]})
    others = [
        asked_digest({"a"}, {}, RunOptions(), {"x": (1, 3)}),
        asked_digest({"a", "b"}, {"a": {"n": 1}}, RunOptions(), {"x": (1, 3)}),
        asked_digest({"a", "b"}, {}, RunOptions(allow=frozenset({"contrib-ops"})), {"x": (1, 3)}),
        asked_digest({"a", "b"}, {}, RunOptions(), {"x": (2, 3)}),
    ]
    assert len({plain, *others}) == 5


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(tmp_path / "tuning.sqlite3"), str(tmp_path / "out.json")
    Store(Path(file)).add([place()], [plan()])

    def said(*arguments: str) -> str:
        code = main(["records", *arguments, "--file", file])
        shown = capsys.readouterr()
        assert not code, shown.err
        return shown.out

    listed = said("list")
    assert f"1 model and 1 place in {file}" in listed
    assert KEY[:12] in listed
    assert "regroup groups=4 1.50x" in listed
    assert json.loads(said("show", KEY[:12]).split("\n\n")[1])["site"] == "y"
    assert "1 model and 1 place written" in said("export", out)
    assert "2 records removed" in said("prune", "--all")
    assert "0 models and 0 places" in said("list")
    assert said("import", out) == f"1 model and 1 place taken into {file}\n"
    assert Store(Path(file)).place(HERE, KEY) is not None
    assert said("import", out) == (
        f"0 models and 0 places taken into {file}; 2 records there are as new or newer, and stay\n"
    )


def test_an_import_of_older_records_leaves_newer_ones_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, carried = tmp_path / "tuning.sqlite3", tmp_path / "carried.json"
    newer, older = place(), place(OTHER, days=3)
    Store(file).add([newer, older], [plan()])
    carried.write_bytes(dump([place(days=2, chosen=None), place(OTHER, days=1, chosen=None)], [plan(budget=9)]))
    assert main(["records", "import", str(carried), "--file", str(file)]) == 0
    said = capsys.readouterr().out
    assert said == f"1 model and 1 place taken into {file}; 1 record there is as new or newer, and stays\n"
    store = Store(file)
    assert store.place(HERE, KEY) == newer
    assert (found := store.place(HERE, OTHER)) is not None
    assert found.chosen is None
    assert [entry.budget for entry in store.plans()] == [9]


def test_what_is_taken_in_replaces_only_what_is_older(store: Store) -> None:
    """Of the same instant, what is there stays; the instant counts, not how it is written; a search replaces anyway."""
    there, plan_there = place(), plan()
    assert store.merge([there], [plan_there]) == (1, 1)
    elsewhere = timezone(timedelta(hours=9))
    for seconds, taken in ((0, 0), (-1, 0), (1, 1)):
        when = (there.created + timedelta(seconds=seconds)).astimezone(elsewhere)
        planned = (plan_there.created + timedelta(seconds=seconds)).astimezone(elsewhere)
        update, planned_update = {"created": when, "chosen": None}, {"created": planned, "budget": 9.0}
        found = store.merge([there.model_copy(update=update)], [plan_there.model_copy(update=planned_update)])
        assert found == (taken, taken), seconds
        assert [entry.chosen for entry in store.places()] == [None if taken else 0]
        assert [entry.budget for entry in store.plans()] == [9.0 if taken else 60.0]
    store.add([there], [plan_there])
    assert (store.places(), store.plans()) == ([there], [plan_there])


def test_of_two_records_of_one_place_in_a_file_the_newer_is_taken(store: Store) -> None:
    newer, older = place(), place(days=1)
    for entries in ([newer, older], [older, newer]):
        store.prune()
        store.merge(entries, [])
        assert store.places() == [newer]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["prune"], "Say which records to remove"),
        (["prune", "--all", "--older-than", "3"], "Say which records to remove"),
        (["show", "zz"], "No record has the key zz"),
        (["import", "nowhere.json"], "does not exist"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    Store(tmp_path / "t.sqlite3")
    assert main(["records", *arguments, "--file", str(tmp_path / "t.sqlite3")]) == 2
    assert reason in capsys.readouterr().err
