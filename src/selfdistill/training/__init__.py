"""One training engine for every method; it knows nothing of artifacts, workflows or trackers."""
