"""Fixtures that several test modules share."""

import pytest

from tracking_project import database, empty  # noqa: F401


@pytest.fixture
def streams(monkeypatch):
    """(step, place of the first group) of each sampling of a training, in order. All finished groups are kept."""
    from selfdistill.training import sampling  # Needs torch, which most test modules do not.

    begun, stream = [], sampling.StepSampling._stream

    def record(self, done):
        begun.append((self.step, self.first))
        return stream(self, done)

    monkeypatch.setattr(sampling.StepSampling, "_stream", record)
    monkeypatch.setattr(sampling, "_KEEP_SECONDS", 0.0)
    return begun
