"""DCES Lab. `curate` is one DCES step on any pool of texts; everything else is in the modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dces_core.curation import Curated as Curated
    from dces_core.curation import curate as curate

__all__ = ["Curated", "curate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dces_core import curation

    return getattr(curation, name)
