"""
The model server: answers the image names and arguments of KServe's runtimes, for each format by its own library.

Served over HTTP/1.1: the V1 protocol, the Open Inference Protocol V2 (JSON and binary tensors, repository), the OpenAI
API of models of texts, ``/metrics``. It listens only once its models are loaded, so that an open port means that they
are ready.
"""

from shallop_pod.modelserver.server import main

__all__ = ["main"]
