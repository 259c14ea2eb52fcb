"""The MLflow store of a project: its address, its lock, its files, and what was written to it last.

By default `results/mlflow/mlflow.db` (SQLite; MLflow 3.17 refuses file stores). `MLFLOW_TRACKING_URI` overrides it.
The lock and the record of the last write stand beside the default store, never inside a store. MLflow itself is
imported only where a database is created or migrated.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

from selfdistill.artifacts.store import ROOT
from selfdistill.files import pretty_json, sha256_text, write_atomically
from selfdistill.schema.errors import UserError, public_address, without_password

_SQLITE = "sqlite:///"
_CONNECT_SECONDS = 5.0
#: Where databases listen whose address names no port.
_PORTS = {"postgresql": 5432, "mysql": 3306}
#: What names another way to the server, in the query of an address.
_OTHER_WAYS = ("host", "unix_socket", "read_default_file")
#: How long a write waits for another program that holds the SQLite file. SQLite's own default is 5 seconds.
LOCK_SECONDS = 60.0
#: Read by MLflow when it is imported; a user's own value stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
#: Where the database holds absolute paths.
_LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


class TrackingError(UserError):
    """The MLflow store cannot be reached or written. The artifacts are not affected."""


@dataclass(frozen=True)
class TrackingStore:
    """The MLflow store that one results folder is written to."""

    results: Path
    uri: str

    @classmethod
    def choose(cls, root: Path = ROOT, uri: str | None = None) -> TrackingStore:
        """The address given, else that of `MLFLOW_TRACKING_URI`, else the default one under results/."""
        results = root.parent
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{(results / 'mlflow/mlflow.db').resolve()}"
        if uri.startswith(_SQLITE):
            return cls(results, f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).resolve()}")
        if "://" not in uri:  # Not repeated: it may be `user:password@host`.
            raise TrackingError("MLFLOW_TRACKING_URI has no scheme. Use sqlite:///path/mlflow.db or http(s)://.")
        _check_address(uri)
        if uri.startswith("file:"):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI={public_address(uri)}: MLflow 3.17 refuses file stores. "
                "Use sqlite:///path/mlflow.db or http(s)://."
            )
        return cls(results, uri)

    @property
    def folder(self) -> Path:
        return self.results / "mlflow"

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def database(self) -> Path | None:
        """The SQLite file; None for a server."""
        return Path(self.uri.removeprefix(_SQLITE)) if self.uri.startswith(_SQLITE) else None

    @property
    def is_default(self) -> bool:
        return self.database == (self.folder / "mlflow.db").resolve()

    @property
    def project(self) -> str:
        """Whose runs these are: a store that several projects share never loses another one's runs."""
        name = "results" if self.is_default else f"{socket.gethostname()}:{self.results.resolve()}"
        return name.replace("'", "_")  # it is quoted in searches

    @property
    def shown(self) -> str:
        """The address without user and password; a relative path for a file."""
        return os.path.relpath(self.database) if self.database is not None else public_address(self.uri)

    @property
    def files(self) -> Path | None:
        """Folder with the files of the runs: one for each SQLite file; None for a server, which keeps them itself."""
        if self.database is None:
            return None
        return (self.folder / "files").resolve() if self.is_default else Path(f"{self.database}-files")

    def artifact_location(self, group: str) -> str | None:
        """Folder of an experiment's files; None leaves the choice to the server."""
        return (self.files / group).as_uri() if self.files is not None else None

    def exists(self) -> bool:
        """False if the store certainly has to be written anew."""
        return self.database is None or self.database.is_file()

    def check_reachable(self) -> None:
        """TrackingError within seconds for a server that is down or too slow (MLflow itself retries for minutes)."""
        parts = urlsplit(self.uri)
        kind, reason = "server", None
        if parts.scheme in ("http", "https") and parts.hostname:
            reason = _why_unreachable(f"{public_address(self.uri).rstrip('/')}/health")
        elif parts.hostname and not any(way in parse_qs(parts.query) for way in _OTHER_WAYS):
            default = _PORTS.get(parts.scheme.partition("+")[0])
            if default is not None:
                kind, reason = "database", _why_closed(parts.hostname, parts.port or default)
        if reason is not None:
            raise TrackingError(
                f"the MLflow {kind} {self.shown} does not answer ({without_password(reason, self.uri)}); the artifacts "
                "are complete without it. Start it, or unset MLFLOW_TRACKING_URI, then: selfdistill track"
            )

    def last_written(self) -> dict[str, Any]:
        """What the last writer of this store recorded: fingerprint, MLflow version. Empty if unknown."""
        try:
            return json.loads(self._state.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def record(self, written: dict[str, Any]) -> None:
        write_atomically(self._state, pretty_json(written))

    def kept_tags(self) -> dict[str, dict[str, str]]:
        """Tags that people gave to runs that were removed, by artifact, for the runs that follow."""
        try:
            return json.loads(self._tags.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def keep_tags(self, tags: dict[str, dict[str, str]]) -> None:
        tags = {name: given for name, given in tags.items() if given}
        if tags != self.kept_tags():
            write_atomically(self._tags, pretty_json(tags))

    @property
    def _state(self) -> Path:
        return self._own_file("written")

    @property
    def _tags(self) -> Path:
        return self._own_file("tags")

    def _own_file(self, name: str) -> Path:
        """One file per store, named by a digest: URIs may hold passwords. The default store may be moved."""
        return self.folder / f".{name}-{'default' if self.is_default else sha256_text(self.uri)[:12]}.json"

    def identity(self, fingerprint: str) -> dict[str, str]:
        """What has to be as it was for nothing to be left to do."""
        return {"fingerprint": fingerprint, "files": str(self.files)}

    def failure(self, error: Exception) -> TrackingError:
        """One sentence on what MLflow or its database raised, with the way out; never with the password."""
        reason = without_password((str(error).strip() or type(error).__name__).splitlines()[0], self.uri)
        said = f"the MLflow store {self.shown} cannot be written ({reason}). The artifacts are complete without it. "
        if isinstance(error, ImportError):
            return TrackingError(f"{said}Install the database's driver, then: selfdistill track")
        if "database is locked" in reason:
            return TrackingError(
                f"{said}Another program has held the database for {LOCK_SECONDS:.0f} s. Run later: selfdistill track"
            )
        if self.is_default:
            kept = f"{self.shown}.broken"
            return TrackingError(f"{said}If it is damaged: mv {self.shown} {kept}; selfdistill track")
        return TrackingError(f"{said}Check MLFLOW_TRACKING_URI, then: selfdistill track")

    def prepare(self, uri: str) -> None:
        """Create the tables of a database, or migrate those of an older MLflow (`mlflow db upgrade`)."""
        from mlflow.db import upgrade

        upgrade.callback(uri)

    def follow_move(self, experiment: str, group: str) -> None:
        """MLflow stores absolute paths of files: after the project was moved or copied, write the present ones."""
        now = self.artifact_location(group)
        with closing(sqlite3.connect(self.database, timeout=LOCK_SECONDS)) as connection, connection:
            query = "SELECT artifact_location FROM experiments WHERE name = ?"
            found = connection.execute(query, (experiment,)).fetchone()
            if found is None or found[0] == now:
                return
            both = tuple(location.removesuffix(group) for location in (found[0], now))
            for table, column in _LOCATIONS:
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", both)


@contextmanager
def sqlite_settings(*, durable: bool = True) -> Iterator[None]:
    """SQLite connections wait for a locked file; `durable=False` for a file that nobody else has yet."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def on_connect(connection: Any, _record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(f"PRAGMA busy_timeout = {1000 * LOCK_SECONDS:.0f}")
            if not durable:
                connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", on_connect)
    try:
        yield
    finally:
        event.remove(Engine, "connect", on_connect)


def _why_unreachable(url: str) -> str | None:
    """Why a page does not come within seconds; None if anything comes, be it an error page.

    Time limits hold for one read each, and a server that sends a byte now and then never exceeds them. So a thread
    reads, and is left behind if it takes too long.
    """
    found: list[str | None] = []

    def read() -> None:
        try:
            with urlopen(url, timeout=_CONNECT_SECONDS) as answer:
                answer.read()
            found.append(None)
        except HTTPError:
            found.append(None)
        except (OSError, ValueError, HTTPException) as error:
            found.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT_SECONDS)
    return found[0] if found else f"no complete answer within {2 * _CONNECT_SECONDS:g} s"


def _why_closed(host: str, port: int) -> str | None:
    """Why no connection is accepted within seconds; None if one is."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one.
        return str(error)
    return None


def _check_address(uri: str) -> None:
    """TrackingError, without the address, if it cannot be parsed, or a password in it was cut."""
    try:
        parts = urlsplit(uri)
        is_valid = parts.port != 0 and "@" not in parts.path + parts.fragment
    except ValueError:
        is_valid = False
    if not is_valid:
        raise TrackingError(
            "MLFLOW_TRACKING_URI is not a valid address. Write / @ : in a password as %2F %40 %3A."
        ) from None


def quiet_environment() -> None:
    """Telemetry off, short retries. Before the first import of MLflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
