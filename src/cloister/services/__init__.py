"""The AWS services: one module or package each; every operation registers itself when imported."""

from __future__ import annotations

import importlib
import pkgutil


def load(package: str = __name__) -> None:
    """Import every module below `package`, all services by default, so that its operations are registered."""
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, prefix=f"{package}."):
        importlib.import_module(module.name)
