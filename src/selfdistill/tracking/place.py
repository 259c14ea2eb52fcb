"""Where the MLflow store is, and what guards it.

By default `results/mlflow/mlflow.db` (SQLite; the file store is refused by MLflow 3.17). `MLFLOW_TRACKING_URI` wins.
Beside it, and never in it: the lock of the one writer, and the fingerprint of what was written last.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selfdistill.artifacts.store import ROOT
from selfdistill.files import pretty_json, sha256_text, write_atomically
from selfdistill.schema.errors import UserError

_SQLITE = "sqlite:///"
_CONNECT_SECONDS = 5.0
#: Read by MLflow when it is imported; a user's own value stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class TrackingError(UserError):
    """The MLflow store cannot be reached or written. The artifacts are not affected."""


@dataclass(frozen=True)
class Place:
    """One MLflow store of one results folder."""

    results: Path
    uri: str

    @classmethod
    def choose(cls, root: Path = ROOT, store: str | None = None) -> Place:
        """The store given, else the one of `MLFLOW_TRACKING_URI`, else the default one under results/."""
        results = root.parent
        uri = store or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{(results / 'mlflow/mlflow.db').resolve()}"
        if uri.startswith(_SQLITE):
            uri = f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).resolve()}"
        elif "://" not in uri or uri.startswith("file:"):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI={uri}: MLflow 3.17 refuses file stores. Use sqlite:///path/mlflow.db or http(s)://."
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
        """The URI without credentials, short for files."""
        if self.database is not None:
            return os.path.relpath(self.database)
        return self.uri.replace(urlsplit(self.uri).netloc, urlsplit(self.uri).netloc.rpartition("@")[2])

    @property
    def files(self) -> Path:
        """Files of the runs, where no server keeps them."""
        return self.folder / "files"

    def artifact_location(self, group: str) -> str | None:
        """Folder of an experiment's files; None leaves the choice to the server."""
        return (self.files / group).resolve().as_uri() if self.database is not None else None

    def exists(self) -> bool:
        """False if the store certainly has to be written anew."""
        return self.database is None or self.database.is_file()

    def check_reachable(self) -> None:
        """TrackingError within seconds for a server that is down (MLflow's client retries for minutes)."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise TrackingError(
                f"the MLflow server {self.shown} does not answer ({error}); the artifacts are complete without it. "
                "Start it, or unset MLFLOW_TRACKING_URI, then: selfdistill track"
            ) from None

    def last_written(self) -> dict[str, Any]:
        """What the last writer of this store recorded: fingerprint, MLflow version. Empty if unknown."""
        try:
            return json.loads(self._state.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def record(self, written: dict[str, Any]) -> None:
        write_atomically(self._state, pretty_json(written))

    @property
    def _state(self) -> Path:
        """One file per store, named by a digest: URIs may hold passwords. The default store may be moved."""
        return self.folder / f".written-{'default' if self.is_default else sha256_text(self.uri)[:12]}.json"

    def identity(self, fingerprint: str) -> dict[str, str]:
        """What has to be as it was for nothing to be left to do."""
        return {"fingerprint": fingerprint, "files": str(self.files.resolve())}


def quiet_environment() -> None:
    """Telemetry off, short retries. Before the first import of MLflow."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
