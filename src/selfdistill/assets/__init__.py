"""From the pin of an external asset to a path on this machine: found, downloaded at its commit, verified.

`Assets.here()` reads both asset files. Stages call `file(pin)` and `model_folder(pin)`, the command line `fetch` and
`check`. A file whose digest differs from its pin is never returned.
"""

from selfdistill.assets.places import Assets
from selfdistill.assets.record import add_entry, add_local, check, fetch, write_lock

__all__ = ["Assets", "add_entry", "add_local", "check", "fetch", "write_lock"]
