# MLflow is an index of the artifacts, written after the fact by one process; a store that is down is a warning.
# SELFDISTILL_TRACKING=off leaves it alone (`selfdistill track` catches up later).

import os

TRACK = (
    "true"
    if os.environ.get("SELFDISTILL_TRACKING") == "off"
    else f"{PYTHON} -m selfdistill.cli track --quiet --best-effort"
)


onsuccess:
    shell(TRACK)


onerror:
    shell(TRACK)
