"""The records on disk: an SQLite file in the user's cache folder, that several processes may use at once.

A file of a newer version is left alone; one that is damaged is put aside, never deleted.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import platformdirs
from pydantic import ValidationError

from rewriter.errors import BadInput
from rewriter.tuning.entries import Environment, PlaceEntry, PlanEntry

_Kind = TypeVar("_Kind", PlaceEntry, PlanEntry)
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

    def __init__(self, path: Path) -> None:
        """Make the file, or bring it to this version.  Raises BadInput where it cannot be, or is of a newer version."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._migrate()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise BadInput(f"the tuning records '{path}' cannot be opened: {error}.") from error
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            self._migrate()
        except OSError as error:
            raise BadInput(f"the tuning records '{path}' cannot be made: {error.strerror or error}.") from error

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
        """Put them in, over older ones of the same key; all or none."""
        with self._writing() as database:
            database.executemany(
                "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?)",
                [
                    (entry.environment.key, entry.key, entry.created.isoformat(), entry.model_dump_json())
                    for entry in places
                ],
            )
            database.executemany(
                "INSERT OR REPLACE INTO plan VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        entry.environment.key,
                        entry.model,
                        entry.asked,
                        entry.created.isoformat(),
                        entry.model_dump_json(),
                    )
                    for entry in plans
                ],
            )

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
            if version > len(_MIGRATIONS):
                raise BadInput(
                    f"the tuning records '{self.path}' are of version {version}, which a newer rewriter made; this one "
                    f"knows {len(_MIGRATIONS)}: upgrade, or set REWRITER_CACHE to another folder."
                )
            for statements in _MIGRATIONS[version:]:
                for statement in filter(str.strip, statements.split(";")):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the file from its start, so that none is read and changed by two at once."""
        with closing(self._open()) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _read(self, statement: str, *values: str) -> list[str]:
        with closing(self._open()) as database:
            return [body for (body,) in database.execute(statement, values)]

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)


def _parsed(kind: type[_Kind], body: str) -> _Kind | None:
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        return None
