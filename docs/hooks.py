"""Build steps of the documentation that MkDocs itself does not have (https://www.mkdocs.org).

The API reference is read from a copy of the sources laid out as the package is installed, because
``callbacks/`` lies beside the package in the repository and inside it once installed. Figures stay
in ``benchmarks/figures``, where the commands write them; pages refer to them by the path in the
repository, which is replaced by the path on the site.
"""

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
FIGURES = "benchmarks/figures"
INSTALLED = ROOT / ".cache" / "docs" / "lightning_compress"
# Cross-references of docstrings such as :class:`~.runtime.Runtime`, which Markdown does not know.
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`~?[\w.]*?(\w+)`")


def on_startup(**_: Any) -> None:
    """Copy the sources to ``.cache/docs/lightning_compress``, which mkdocs.yml names.

    Before anything else: mkdocstrings looks for the sources when it is configured.
    """
    shutil.rmtree(INSTALLED, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lightning_compress", INSTALLED, ignore=skipped)
    shutil.copytree(ROOT / "callbacks", INSTALLED / "callbacks", ignore=skipped)
    for path in INSTALLED.rglob("*.py"):
        path.write_text(ROLE.sub(r"``\1``", path.read_text("utf-8")), "utf-8")


def on_files(files: Any, config: Any) -> Any:
    """Add the figures to the site."""
    for figure in sorted((ROOT / FIGURES).glob("*.png")):
        path = f"figures/{figure.name}"
        files.append(File.generated(config, path, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace paths of figures in the repository by those on the site."""
    folder = posixpath.dirname(page.file.src_uri)
    written = posixpath.relpath(FIGURES, posixpath.join("docs", folder))
    return markdown.replace(f"({written}/", f"({posixpath.relpath('figures', folder or '.')}/")
