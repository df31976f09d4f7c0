"""Write the lists in the documents that follow from tables in the code.

    python docs/generate.py

README.md and docs/ contain regions between ``<!-- generated: NAME -->`` and
``<!-- end generated -->``. Each is replaced by what the function of that name below returns.
``make docs`` runs this; ``tests/test_docs.py`` fails where a document is out of date.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path

from lightning_compress.evaluation.runtimes.table import RUNTIMES
from lightning_compress.export.formats import FORMATS
from lightning_compress.models.families import FAMILIES
from lightning_compress.quantization.precisions import PRECISIONS
from lightning_compress.tasks import TASKS, task_names

ROOT = Path(__file__).parents[1]
REGION = re.compile(
    r"(<!-- generated: (?P<name>[^>]+?) -->\n).*?(<!-- end generated -->)", flags=re.DOTALL
)


def documents() -> list[Path]:
    """README.md and all pages."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def generated(text: str) -> str:
    """A document with its regions up to date."""
    return REGION.sub(lambda found: f"{found[1]}\n{_content(found['name'])}\n\n{found[3]}", text)


def _content(name: str) -> str:
    what, *arguments = name.split()
    return CONTENTS[what](*arguments)


def families() -> str:
    """Which edits each model family supports."""
    rows = [
        [
            f"`{name}`",
            "yes",
            "no: shared weights" if family.shared else "yes",
            "yes" if family.substitutable else "no",
        ]
        for name, family in sorted(FAMILIES.items())
    ]
    return _table(["`model_type`", "heads, neurons", "layers", "substitution"], rows)


def tasks() -> str:
    """The values of ``model.task``."""
    rows = [
        [
            f"`{task.name}`",
            f"`{task.problem_type}`" if task.problem_type else "",
            f"`{task.primary_metric}`",
            f"`{task.auto_class}`",
        ]
        for task in TASKS
    ]
    return _table(["`model.task`", "`model.problem_type`", "primary metric", "model class"], rows)


def formats() -> str:
    """What a model can be exported to."""
    rows = [
        [
            f"`{name}`",
            f"`{one.runtime}`",
            _names(one.precisions),
            f"`.[{one.extra}]`" if one.extra else "nothing",
        ]
        for name, one in FORMATS.items()
    ]
    return _table(["`--format`", "runtime", "`--precision`", "install"], rows)


def runtimes() -> str:
    """What runs a model in a benchmark."""
    exported = {one.runtime: f"the export format `{name}`" for name, one in FORMATS.items()}
    rows = [[f"`{name}`", exported.get(name, "the model in PyTorch")] for name in RUNTIMES]
    return _table(["`runtimes`", "runs"], rows)


def precisions() -> str:
    """What a model can be cast or quantized to."""
    return f"`precisions` are {_names(PRECISIONS)}."


def supported() -> str:
    """Models, tasks, runtimes, precisions and formats in one line each."""
    return "\n".join(
        [
            f"- **Model families**: {_names(sorted(FAMILIES))}",
            f"- **Tasks**: {_names(task_names())}; classification is single-label, multi-label or "
            "regression",
            f"- **Runtimes**: {_names(RUNTIMES)}",
            f"- **Precisions**: {_names(PRECISIONS)}",
            f"- **Export formats**: {_names(FORMATS)}",
        ]
    )


def recipes() -> str:
    """All recipes with the first sentence of each."""
    rows = [
        [f"`configs/{path.name}`", _first_sentence(path.read_text(encoding="utf-8"))]
        for path in sorted((ROOT / "configs").glob("*.yaml"))
    ]
    return _table(["file", "purpose"], rows)


def reference(module: str) -> str:
    """The API of what a module exports."""
    found = import_module(module)
    names: Sequence[str] = getattr(found, "__all__", None) or dir(found)
    return "\n\n".join(f"::: {module}.{name}" for name in sorted(names, key=str.lower))


CONTENTS: dict[str, Callable[..., str]] = {
    one.__name__: one
    for one in (
        families, tasks, formats, runtimes, precisions, supported, recipes, reference,
    )
}  # fmt: skip


def _first_sentence(recipe: str) -> str:
    lines = [line.removeprefix("#").strip() for line in recipe.split("\n")]
    comment = " ".join(lines[: next(i for i, line in enumerate(lines) if not line)])
    return re.split(r"(?<=\.)\s", comment)[0]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def main() -> None:
    """Bring all documents up to date."""
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = generated(old)
        if new != old:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
