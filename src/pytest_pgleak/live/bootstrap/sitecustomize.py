"""Python imports this before anything else in the processes of a live server: its directory is first in PYTHONPATH.

It must not be noticed. A ``sitecustomize`` of the user's own, or of the distribution, is imported as if this one were
not there.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is a large import
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _here]  # noqa: PTH100
_own = sys.modules.pop(__name__)
try:
    __import__(__name__)  # the other one
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
sys.modules.setdefault(__name__, _own)  # the import system looks for it when this file has been run

if os.environ.get("PGLEAK_LIVE"):
    try:
        from pytest_pgleak.live.worker import watch_this_process

        watch_this_process()
    except Exception:  # noqa: BLE001 - the application must start all the same; the server's log says why it is blind
        import traceback

        traceback.print_exc()
