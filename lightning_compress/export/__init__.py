"""Where to: other runtimes and their file formats."""

from lightning_compress.export.export import export_model
from lightning_compress.export.formats import FORMATS, ExportOptions, FormatName
from lightning_compress.export.verify import Agreement

__all__ = ["FORMATS", "Agreement", "ExportOptions", "FormatName", "export_model"]
