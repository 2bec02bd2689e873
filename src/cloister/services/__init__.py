"""The AWS services: one module or package each; every operation registers itself when imported."""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    """Import every module below `cloister.services`, so that all operations are registered."""
    for module in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        importlib.import_module(module.name)
