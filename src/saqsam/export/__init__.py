"""Write quantized models as files for other runtimes, encoder and decoder; one folder or module per format.

May import `checkpoint` and everything below it. Public names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from saqsam.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from saqsam.export.exporter import check_export, export_model
    from saqsam.export.formats import FORMATS
    from saqsam.export.manifest import Manifest, is_export, read_manifest

__all__ = ["FORMATS", "Manifest", "check_export", "export_model", "is_export", "read_manifest"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FORMATS": "formats",
        "Manifest": "manifest",
        "check_export": "exporter",
        "export_model": "exporter",
        "is_export": "manifest",
        "read_manifest": "manifest",
    },
)
