"""Fixtures that several test modules share."""

from tracking_project import database, empty  # noqa: F401
