"""Export PyTorch networks into proven bundles; ``export_model`` is the job, ``export-model`` the command.

Importing this package loads nothing: torch, onnx and the compilers come with the first export.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engineworks.export.pipeline import export_model
    from engineworks.export.recipe import Recipe

__all__ = ["Recipe", "export_model"]


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for."""
    if name == "Recipe":
        from engineworks.export.recipe import Recipe

        return Recipe
    if name == "export_model":
        from engineworks.export.pipeline import export_model

        return export_model
    raise AttributeError(f"module 'engineworks.export' has no attribute {name!r}")
