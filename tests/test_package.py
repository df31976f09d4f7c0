"""The names of the package: all importable, none imported beforehand."""

import subprocess
import sys

import pytest

import lightning_compress


@pytest.mark.parametrize("name", dir(lightning_compress))
def test_every_name_is_importable(name: str) -> None:
    found = getattr(lightning_compress, name)
    assert getattr(found, "__name__", name) in (name, "dict")  # Batch is an alias of dict


def test_a_star_imports_every_name() -> None:
    names: dict[str, object] = {}
    exec("from lightning_compress import *", names)
    assert set(dir(lightning_compress)) <= names.keys()


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, lightning_compress; assert not {'torch', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lightning_compress.nothing  # type: ignore[attr-defined]
