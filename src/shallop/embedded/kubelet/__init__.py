"""The node agent: Pods become processes of this machine."""

from shallop.embedded.kubelet.node import Node

__all__ = ["Node"]
