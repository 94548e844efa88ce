"""The records on disk: an SQLite file in the user's cache folder, that several processes may use at once.

A file of a newer version, of another program, or that is no database at all is left alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC
from pathlib import Path
from typing import Final, TypeVar

import platformdirs
from pydantic import ValidationError

from rewriter.errors import BadInput
from rewriter.tuning.entries import Environment, PlaceEntry, PlanEntry

_Kind = TypeVar("_Kind", PlaceEntry, PlanEntry)
_OURS: Final = 0x72777274  # application_id: how a file of ours is known
_WAIT_SECONDS: Final = 10.0  # for another process that writes
_MIGRATIONS: Final = (
    """
    CREATE TABLE place (
        environment TEXT NOT NULL, key TEXT NOT NULL, created TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (environment, key)
    ) WITHOUT ROWID;
    CREATE TABLE plan (
        environment TEXT NOT NULL, model TEXT NOT NULL, asked TEXT NOT NULL, created TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (environment, model, asked)
    ) WITHOUT ROWID;
    """,
)
"""Statements that lead from each version of the file to the next; never changed, only added to."""


def default_path() -> Path:
    """`tuning.sqlite3` in the user's cache folder; REWRITER_CACHE names another folder."""
    folder = os.environ.get("REWRITER_CACHE") or platformdirs.user_cache_dir("onnx-conv-rewriter")
    return Path(folder) / "tuning.sqlite3"


class Store:
    """Records by environment and key.  Each call is one transaction of its own."""

    def __init__(self, path: Path, *, make: bool = True) -> None:
        """Make the file, or bring it to this version; without `make` it has to be there.

        Raises BadInput where it cannot be opened, is none of ours, or is of a newer version: no file is replaced.
        """
        self.path = path
        if not make and not path.is_file():
            raise BadInput(f"there are no tuning records '{path}'.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"the tuning records '{path}' cannot be made: {error.strerror or error}.") from error
        self._migrate()

    def place(self, environment: Environment, key: str) -> PlaceEntry | None:
        """What was measured at such a place on such a machine; None also for what cannot be believed."""
        rows = self._read("SELECT body FROM place WHERE environment = ? AND key = ?", environment.key, key)
        found = next((_parsed(PlaceEntry, body) for body in rows), None)
        return found if found is not None and (found.environment, found.key) == (environment, key) else None

    def plan(self, environment: Environment, model: str, asked: str) -> PlanEntry | None:
        """The rewrites chosen for the model; None also for what cannot be believed."""
        where = "environment = ? AND model = ? AND asked = ?"
        rows = self._read(f"SELECT body FROM plan WHERE {where}", environment.key, model, asked)
        found = next((_parsed(PlanEntry, body) for body in rows), None)
        same = found is not None and (found.environment, found.model, found.asked) == (environment, model, asked)
        return found if same else None

    def places(self) -> list[PlaceEntry]:
        """All of them, the newest first."""
        rows = self._read("SELECT body FROM place ORDER BY created DESC, key")
        return [found for body in rows if (found := _parsed(PlaceEntry, body)) is not None]

    def plans(self) -> list[PlanEntry]:
        """All of them, the newest first."""
        rows = self._read("SELECT body FROM plan ORDER BY created DESC, model")
        return [found for body in rows if (found := _parsed(PlanEntry, body)) is not None]

    def add(self, places: Sequence[PlaceEntry], plans: Sequence[PlanEntry]) -> None:
        """Put in what was measured just now, over what is there of the same key; all or none."""
        self._put(places, plans, over="true")

    def merge(self, places: Sequence[PlaceEntry], plans: Sequence[PlanEntry]) -> tuple[int, int]:
        """Put in what is newer than what is there of the same key, or new; all of it or none.

        Gives how many places and plans went in.
        """
        return self._put(places, plans, over="excluded.created > created")

    def _put(self, places: Sequence[PlaceEntry], plans: Sequence[PlanEntry], over: str) -> tuple[int, int]:
        """Put them in, those of a key that is there where the condition `over` holds; gives how many went in.

        Times are all written in UTC, in ISO 8601: these sort as the instants do.
        """
        update = f"DO UPDATE SET created = excluded.created, body = excluded.body WHERE {over}"
        with self._writing() as database:
            put_places = database.executemany(
                f"INSERT INTO place VALUES (?, ?, ?, ?) ON CONFLICT (environment, key) {update}",
                [(entry.environment.key, entry.key, *_dated(entry)) for entry in places],
            ).rowcount
            put_plans = database.executemany(
                f"INSERT INTO plan VALUES (?, ?, ?, ?, ?) ON CONFLICT (environment, model, asked) {update}",
                [(entry.environment.key, entry.model, entry.asked, *_dated(entry)) for entry in plans],
            ).rowcount
        return max(put_places, 0), max(put_plans, 0)

    def prune(self, *, before: str | None = None, keep: str | None = None) -> int:
        """Remove records older than `before` (ISO time) or of other environments than `keep`; all where both are None.

        Gives how many went.
        """
        parts = [("created < ?", before), ("environment != ?", keep)]
        clauses = [(clause, value) for clause, value in parts if value is not None]
        where = " OR ".join(clause for clause, _ in clauses) or "1"
        values = [value for _, value in clauses]
        with self._writing() as database:
            gone = [
                database.execute(f"DELETE FROM {table} WHERE {where}", values).rowcount for table in ("place", "plan")
            ]
        return sum(gone)

    def _migrate(self) -> None:
        with self._writing() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (owner,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and owner != _OURS:
                raise BadInput(f"'{self.path}' is the database of another program: name another file.")
            if version > len(_MIGRATIONS):
                raise BadInput(
                    f"the tuning records '{self.path}' are of version {version}, which a newer rewriter made; this one "
                    f"knows {len(_MIGRATIONS)}: upgrade, or set REWRITER_CACHE to another folder."
                )
            for statements in _MIGRATIONS[version:]:
                for statement in filter(str.strip, statements.split(";")):
                    database.execute(statement)
            database.execute(f"PRAGMA application_id = {_OURS}")
            database.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the file from its start, so that none is read and changed by two at once."""
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _read(self, statement: str, *values: str) -> list[str]:
        with self._opened() as database:
            return [body for (body,) in database.execute(statement, values)]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection; whatever SQLite says against the file becomes BadInput."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)) as database:
                yield database
        except sqlite3.Error as error:
            raise BadInput(
                f"the tuning records '{self.path}' cannot be used: {error}. Remove the file, or name another one."
            ) from error


def _dated(entry: PlaceEntry | PlanEntry) -> tuple[str, str]:
    """When it was made, and all of it."""
    return entry.created.astimezone(UTC).isoformat(), entry.model_dump_json()


def _parsed(kind: type[_Kind], body: str) -> _Kind | None:
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        return None
