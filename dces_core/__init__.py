"""DCES Lab. `curate`: one DCES step on any pool of texts; `load`: a run's checkpoint for transformers; the rest is in the modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dces_core.curation import Curated as Curated
    from dces_core.curation import curate as curate
    from dces_core.model_folder import load as load

MODULES = {"Curated": "curation", "curate": "curation", "load": "model_folder"}
__all__ = ["Curated", "curate", "load"]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dces_core.{MODULES[name]}"), name)
