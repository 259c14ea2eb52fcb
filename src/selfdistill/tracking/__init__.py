"""MLflow as an index of the artifacts: written after the fact by one process, deletable, rebuildable.

    survey    what lies on disk, and its fingerprint           (no MLflow: decides whether anything changed)
    labels    names that people use, from the plans of the views
    records   one MLflow run per artifact, as plain data
    index     records -> MLflow; database: the SQLite file behind it (only these two import MLflow)
    sync      one writer: lock, compare, write
    lineage   where every checkpoint came from, recovered from the MLflow store alone

Nothing is ever read back from MLflow into the study, and no weights go there.
"""

from selfdistill.tracking.place import Place, TrackingError, quiet_environment
from selfdistill.tracking.sync import Report, track

quiet_environment()

__all__ = ["Place", "Report", "TrackingError", "track"]
