"""Python imports this by itself at its start in every Pod process: the node puts a link to it on PYTHONPATH."""

import importlib.machinery
import importlib.util
import os
import sys

if os.environ.get("SHALLOP_POD_IP"):
    from shallop_pod import netshim

    netshim.install()

# A sitecustomize of the environment's own is not lost.
_spec = importlib.machinery.PathFinder.find_spec(
    "sitecustomize", [path for path in sys.path if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
)
if _spec is not None and _spec.loader is not None and _spec.origin != __file__:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
