"""
The model server: answers the image names and arguments of KServe's scikit-learn, XGBoost and LightGBM runtimes.

Served over HTTP/1.1: the V1 protocol, the Open Inference Protocol V2 (JSON and binary tensors), ``/metrics``. It
listens only once the model is loaded, so that an open port means a ready model.
"""

from shallop_pod.modelserver.server import main

__all__ = ["main"]
