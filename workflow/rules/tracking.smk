# MLflow is an index of the artifacts, written after the fact by one process.

TRACK = f"{PYTHON} -m selfdistill.cli track --quiet"


onsuccess:
    shell(TRACK)


onerror:
    shell(TRACK)
