"""MLflow as an index of the artifacts: written by one process at a time, deletable, rebuildable.

    store        address, lock, files and SQLite database of the store   (no MLflow at import)
    survey       what lies on disk, and its fingerprint                  (decides whether anything changed)
    naming       names that people used when an artifact was made
    records      one MLflow run per artifact, as plain data
    numbers      numbers of evaluations, and where they are shown
    attachments  completions to read, tables of a run
    builder      artifacts -> records
    experiments  the MLflow experiments and how they are first shown
    index        records -> MLflow
    sync         one writer: lock, compare, write
    live         a process beside a job that calls it while the job runs

Nothing is ever read back from MLflow into the study, and no weights go there.
"""

from selfdistill.tracking.store import TrackingError, TrackingStore, quiet_environment
from selfdistill.tracking.sync import Report, track

quiet_environment()

__all__ = ["Report", "TrackingError", "TrackingStore", "track"]
