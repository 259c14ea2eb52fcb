# MLflow is an index of the artifacts. One process writes it after the jobs; if the store is down, that is a warning.
# SELFDISTILL_TRACKING=off skips it; `selfdistill track` catches up later.

import os

TRACK = (
    "true"
    if os.environ.get("SELFDISTILL_TRACKING") == "off"
    else f"{PYTHON} -m selfdistill.cli track --quiet --best-effort"
)


onsuccess:
    shell(TRACK)


onerror:
    # After Ctrl-C nobody waits for MLflow.
    if not MESSAGES.is_interrupted:
        shell(TRACK)
