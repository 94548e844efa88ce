"""`rewriter records`: what optimize measured on this machine: to look at, to carry to another like it, to remove."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewriter.cli_errors import DONE
from rewriter.cli_show import show
from rewriter.errors import BadInput

if TYPE_CHECKING:
    from rewriter.report.text import Table
    from rewriter.tuning import Environment, Measured, PlaceEntry, PlanEntry, Store

_SHORT = 12  # characters of a key that are shown, and enough to name it

records = typer.Typer(name="records", no_args_is_help=True, help="What optimize measured on this machine, and keeps.")
FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="RECORDS", help="The records; by default those in your cache folder."),
]


@records.command("list")
def list_(file: FileOption = None) -> int:
    """List the models and the places in them that need not be measured again."""
    store = _store(file)
    plans, places = store.plans(), store.places()
    blocks = [table for table, entries in ((_plans(plans), plans), (_places(places), places)) if entries]
    show(list(blocks), f"{_counts(len(plans), len(places))} in {store.path}")
    return DONE


@records.command("show")
def show_(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key that list shows, or its beginning.")],
    file: FileOption = None,
) -> int:
    """Show all that one record says."""
    store = _store(file)
    found = [entry for entry in store.plans() if entry.model.startswith(key)]
    others = [entry for entry in store.places() if entry.key.startswith(key)]
    if not found and not others:
        raise BadInput(f"no record has the key {key}: `rewriter records list` shows those there are.")
    shown = "\n\n".join(entry.model_dump_json(indent=2) for entry in (*found, *others))
    show([], shown)
    return DONE


@records.command("export")
def export(
    to: Annotated[Path, typer.Argument(metavar="OUT.json", help="The file to write.")], file: FileOption = None
) -> int:
    """Write all records to a JSON file, for a machine like this one."""
    from rewriter.saving import write_atomically
    from rewriter.tuning import dump

    store = _store(file)
    if to.resolve() == store.path.resolve():
        raise BadInput(f"'{to}' holds the records themselves: export them to another file.")
    plans, places = store.plans(), store.places()
    write_atomically(to, dump(places, plans))
    show([], f"{_counts(len(plans), len(places))} written to {to}")
    return DONE


@records.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="IN.json", help="A file that export wrote.")],
    file: FileOption = None,
) -> int:
    """Take records in from a file that export wrote; none where one of them is not valid.

    A record that is there stays if it is as new or newer. Those of another machine are kept, and used only there.
    """
    from rewriter.tuning import load

    places, plans = load(source)
    store = _store(file, make=True)
    new_places, new_plans = store.merge(places, plans)
    stay = len(places) + len(plans) - new_places - new_plans
    verbs = ("is", "stays") if stay == 1 else ("are", "stay")
    more = f"; {_counted(stay, 'record')} there {verbs[0]} as new or newer, and {verbs[1]}" if stay else ""
    show([], f"{_counts(new_plans, new_places)} taken into {store.path}{more}")
    return DONE


@records.command("prune")
def prune(
    older_than: Annotated[
        int | None, typer.Option("--older-than", metavar="DAYS", min=0, max=36500, help="Remove those older than this.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all of them.")] = False,
    file: FileOption = None,
) -> int:
    """Remove records: those older than some days, or all."""
    if (older_than is None) != everything:
        raise BadInput("say which records to remove: --older-than DAYS, or --all.")
    store = _store(file)
    before = None if older_than is None else (datetime.now(UTC) - timedelta(days=older_than)).isoformat()
    gone = store.prune(before=before)
    show([], f"{_counted(gone, 'record')} removed from {store.path}")
    return DONE


def _store(file: Path | None, *, make: bool = False) -> Store:
    from rewriter.tuning import Store, default_path

    return Store(file or default_path(), make=make or file is None)


def _counted(number: int, noun: str) -> str:
    from rewriter.report.text import counted  # here: `rewriter --help` must not wait for it

    return counted(number, noun)


def _counts(models: int, places: int) -> str:
    return f"{_counted(models, 'model')} and {_counted(places, 'place')}"


def _plans(plans: list[PlanEntry]) -> Table:
    from rewriter.report.text import Table

    return Table(
        ("model", "speed-up", "rewrites", "machine", "measured"),
        tuple(
            (
                entry.model[:_SHORT],
                f"{entry.speedup:.2f}x",
                str(len(entry.steps)),
                _machine(entry.environment),
                f"{entry.created:%Y-%m-%d}",
            )
            for entry in plans
        ),
    )


def _places(places: list[PlaceEntry]) -> Table:
    from rewriter.report.text import Table

    return Table(
        ("place", "fastest", "machine", "measured", "first met at"),
        tuple(
            (
                entry.key[:_SHORT],
                _fastest(entry.measured, entry.chosen),
                _machine(entry.environment),
                f"{entry.created:%Y-%m-%d}",
                entry.site,
            )
            for entry in places
        ),
    )


def _fastest(measured: tuple[Measured, ...], chosen: int | None) -> str:
    if chosen is None:
        return f"as it is (of {len(measured) + 1})"
    one = measured[chosen]
    settings = " ".join(f"{key}={value}" for key, value in one.settings.items())
    return " ".join(filter(None, (one.pass_name, settings, f"{one.speedup:.2f}x")))


def _machine(environment: Environment) -> str:
    threads = _counted(environment.threads, "thread")
    return f"{environment.provider}, {threads}, ONNX Runtime {environment.onnxruntime}"
