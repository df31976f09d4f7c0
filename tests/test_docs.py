"""The documents against the code: blocks run or parse, lists follow the tables, links exist."""

import ast
import builtins
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml

from lightning_compress.cli.benchmark import _parser as benchmark_parser
from lightning_compress.cli.export import _parser as export_parser
from lightning_compress.cli.trainer import CompressCLI, command_line

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PARSE_ONLY = "<!-- docs-test: parse -->"
BLOCK = re.compile(
    rf"(?P<mark>{re.escape(PARSE_ONLY)}\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Names that a block marked as parsed only may take from the reader's own code.
READERS = {"module", "data", "folder", "trainer", "model", "tokenizer"}


class Block(NamedTuple):
    """A fenced block of a document."""

    place: str
    text: str
    runs: bool


def blocks(language):
    """All blocks of a language, as parameters of a test."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block["language"] == language:
                line = text[: block.start("language")].count("\n") + 1
                place = f"{page.relative_to(ROOT)}:{line}"
                found.append(Block(place, block["text"], block["mark"] is None))
    assert found
    return [pytest.param(block, id=block.place) for block in found]


def commands():
    """All lines of shell blocks and recipes that call the command line, as parameters of a test."""
    found = []
    for param in blocks("sh"):
        (block,) = param.values
        found += [(block.place, line) for line in block.text.splitlines()]
    for recipe in sorted((ROOT / "configs").glob("*.yaml")):
        comment = "\n".join(
            line.removeprefix("#").strip()
            for line in recipe.read_text(encoding="utf-8").splitlines()
            if line.startswith("#")
        )
        calls = re.findall(r"^(lightning-compress .*(?:\n--.*)*)", comment, flags=re.MULTILINE)
        found += [(recipe.name, call.replace("\n", " ")) for call in calls]
    calls = [(place, line) for place, line in found if line.startswith("lightning-compress ")]
    assert {line.split()[1] for _, line in calls} >= {"fit", "test", "benchmark", "export"}
    return [pytest.param(line, id=f"{place} {line.split()[1]}") for place, line in calls]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which is a script and no part of a package."""
    path = ROOT / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parsed(monkeypatch):
    """Parse the arguments of ``fit`` and its kin; gives the configuration."""

    def parse(*arguments):
        found = []

        def stop(cli):
            found.append(cli.config[cli.config.subcommand])
            raise SystemExit(0)

        monkeypatch.setattr(CompressCLI, "before_instantiate_classes", stop)
        monkeypatch.setattr(CompressCLI, "_parse_ckpt_path", lambda cli: None)
        monkeypatch.setattr(sys, "argv", ["lightning-compress", *arguments])
        with pytest.raises(SystemExit, match="0"):
            command_line()
        return found[0]

    return parse


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run_or_their_names_resolve(block, tmp_path, monkeypatch):
    tree = ast.parse(block.text)
    if block.runs:
        monkeypatch.chdir(tmp_path)
        exec(compile(tree, block.place, "exec"), {"__name__": "__main__"})
        return
    known = set(vars(builtins)) | READERS
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            for alias in node.names:
                assert hasattr(import_module(node.module), alias.name), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                import_module(alias.name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
    unknown = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known
    assert not unknown
    check_keywords(tree)


def check_keywords(tree):
    """Calls of imported classes and functions name parameters that exist."""
    imported = {
        alias.asname or alias.name: getattr(import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in imported:
                continue
            parameters = inspect.signature(imported[node.func.id]).parameters
            given = {keyword.arg for keyword in node.keywords}
            assert given <= set(parameters), node.func.id


@pytest.mark.parametrize("line", commands())
def test_commands_are_accepted_by_the_real_parser(line, parsed):
    _, command, *arguments = shlex.split(line)
    for place, flag in enumerate(arguments):
        if flag == "--config":
            arguments[place + 1] = str(ROOT / arguments[place + 1])
            assert Path(arguments[place + 1]).is_file()
    if command == "benchmark":
        benchmark_parser().parse_args(arguments)
    elif command == "export":
        export_parser().parse_args(arguments)
    else:
        parsed(command, *arguments)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_are_accepted_by_the_real_parser(block, parsed, tmp_path):
    given = yaml.safe_load(block.text)
    assert set(given) <= {"trainer", "model", "data"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(block.text)
    configuration = parsed("fit", "--config", str(recipe))
    for key in given:
        assert configuration[key] is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_figures_exist(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_classes_that_documents_name_exist(page):
    text = page.read_text(encoding="utf-8")
    if page.name != "CHANGELOG.md":  # it also names what is gone
        for path in re.findall(r"\b(?:configs|benchmarks)/[\w/]+\.(?:yaml|py|png)", text):
            assert (ROOT / path).is_file(), path
        for name in re.findall(r"\blightning_compress(?:\.\w+)+", LINK.sub("", text)):
            module, _, attribute = name.rpartition(".")
            assert importlib.util.find_spec(module) is not None, name
            known = hasattr(import_module(module), attribute)
            assert known or importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_lists_are_up_to_date(page, generate):
    text = page.read_text(encoding="utf-8")
    assert generate.generated(text) == text, "run: make docs"


def test_every_generated_list_is_used(generate):
    found = {
        match["name"].split()[0]
        for page in generate.documents()
        for match in generate.REGION.finditer(page.read_text(encoding="utf-8"))
    }
    assert found == set(generate.CONTENTS)


def region(page, name):
    """The text between ``<!-- list: NAME -->`` and the end of the list."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- list: {name} -->(.*?)<!-- end list -->", text, flags=re.DOTALL)
    assert found is not None
    return found[1]


def first_cells(table):
    """The names in code font in the first column of a table."""
    rows = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def test_the_table_of_schemes_has_all_of_them():
    from lightning_compress.quantization import SCHEMES

    assert set(first_cells(region("quantization.md", "schemes"))) == set(SCHEMES)


def test_the_table_of_row_keys_has_all_columns():
    from lightning_compress.evaluation.report.columns import columns_for

    keys = {column.key.split(".")[0] for column in columns_for(["accuracy"]) if column.key}
    assert keys <= set(first_cells(region("benchmarking.md", "row keys")))


def test_the_readme_is_short_and_names_all_callbacks_and_modules():
    from lightning_compress import callbacks, modules

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make test" in text
    table = text[text.index("## Techniques") : text.index("## Supported")]
    named = set(re.findall(r"`(\w+)`", table))
    techniques = {*callbacks.__all__, *modules.__all__}
    assert techniques - named == {
        "CompressionBenchmark", "RunSafety", "FineTuningModule", "NonFiniteLossError",
    }  # fmt: skip


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r": ([\w/-]+\.md)$", nav, flags=re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(path.as_posix() for path in pages)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "reference" / "callbacks" / "index.html").is_file()
