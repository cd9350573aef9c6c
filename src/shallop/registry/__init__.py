"""Model registry: registered models, their versions and artifacts, and where they are served."""

from __future__ import annotations

from shallop.controller.kind import Part
from shallop.registry.access import ROLES
from shallop.registry.api import routes
from shallop.registry.tables import MIGRATIONS

__all__ = ["PART"]

PART = Part(name="registry", objects=ROLES, migrations=MIGRATIONS, routes=routes)
