"""The embedded API server."""

from shallop.embedded.apiserver.client import LocalClient
from shallop.embedded.apiserver.kubeconfig import write_kubeconfig
from shallop.embedded.apiserver.requests import User
from shallop.embedded.apiserver.server import ApiServer
from shallop.embedded.apiserver.tls import TlsFiles, ensure_tls
from shallop.embedded.apiserver.tokens import ensure_admin_token

__all__ = ["ApiServer", "LocalClient", "TlsFiles", "User", "ensure_admin_token", "ensure_tls", "write_kubeconfig"]
