"""The command line of all views: `python -m selfdistill.views VIEW PLAN OUTPUT --digest SHA --log LOG`."""

import sys
from importlib import import_module

from selfdistill.plan.views import VIEWS
from selfdistill.views.command import run

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in VIEWS:
        sys.exit(f"usage: python -m selfdistill.views VIEW PLAN OUTPUT; VIEW is one of {', '.join(VIEWS)}")
    view = sys.argv[1]
    run(view, import_module(f"selfdistill.views.{view}").build, sys.argv[2:])
