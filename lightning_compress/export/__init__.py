"""Export to other runtimes: file formats, how they are written, and whether they match PyTorch."""

from lightning_compress.export.export import export_model
from lightning_compress.export.format import ExportOptions, Format
from lightning_compress.export.formats import FORMATS, FormatName
from lightning_compress.export.verify import Agreement

__all__ = ["FORMATS", "Agreement", "ExportOptions", "Format", "FormatName", "export_model"]
