"""The SQLite file behind the default store: tables, migrations, moves."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import mlflow
from alembic.util import CommandError
from mlflow.db import upgrade
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from selfdistill.tracking.experiments import EXPERIMENTS
from selfdistill.tracking.place import Place

VERSION = mlflow.__version__
#: What a store that is gone, broken, full or too new raises.
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, CommandError, OSError)
#: Where the database holds absolute paths.
_LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def silence() -> None:
    """Errors reach the user as one line of ours; MLflow logs their tracebacks besides."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def prepare_database(uri: str) -> None:
    """Create the tables of a database, or bring an older one up to date (`mlflow db upgrade`)."""
    silence()
    upgrade.callback(uri)


def follow_move(place: Place) -> None:
    """MLflow notes where files lie as absolute paths: after the project was moved or copied, say where they are now."""
    name, now = EXPERIMENTS["training"], place.artifact_location("training")
    with closing(sqlite3.connect(place.database)) as connection, connection:
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (name,)).fetchone()
        if found is None or found[0] == now:
            return
        both = tuple(location.removesuffix("training") for location in (found[0], now))
        for table, column in _LOCATIONS:
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", both)


@contextmanager
def fast_commits() -> Iterator[None]:
    """SQLite without a wait for the disk at every commit: for a file that nobody has yet."""

    def on_connect(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", on_connect)
    try:
        yield
    finally:
        event.remove(Engine, "connect", on_connect)
