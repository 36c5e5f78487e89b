"""The layout of the package: small modules, packages that are docstrings, a page that names what is there, and
contracts that find what breaks them.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_durable"
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

MOST_LINES = 400
#: Folders whose ``__init__.py`` hands names on.
FACES = {"", "cli", "codec", "doctor", "effects", "runtime", "seal", "store", "store/migrations", "store/records"}

CONTRACTS: dict[str, dict[str, Any]] = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
}
[LAYERS] = [contract["layers"] for contract in CONTRACTS.values() if contract["type"] == "layers"]
#: Top to bottom; those on one line stand beside each other.
LAYER_LINES = [[name.strip() for name in layer.split("|")] for layer in LAYERS]


def where(module: Path) -> str:
    return module.relative_to(ROOT).as_posix()


def test_no_module_is_too_long() -> None:
    lengths = {where(module): len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if module.name == "__init__.py"],
    ids=lambda module: module.parent.relative_to(PACKAGE).as_posix(),
)
def test_a_package_that_is_no_face_says_what_it_holds_and_nothing_else(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    name = module.parent.relative_to(PACKAGE).as_posix().removeprefix(".")
    assert (len(tree.body) > 1) == (name in FACES)


# -- docs/architecture.md ---------------------------------------------------------------------------------------------


def section(title: str) -> str:
    """The text under a heading of the page, as far as the next one of its level or above."""
    level, _, _ = title.partition(" ")
    [_, text] = PAGE.split(f"\n{title}\n")
    return re.split(rf"^#{{1,{len(level)}}} ", text, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return found[2:]


def test_every_folder_of_the_contract_has_its_line_in_its_order() -> None:
    listed = [re.findall(r"`([\w.]+)`", first) for first, _ in rows(section("## Folders").split("\n### ")[0])]
    assert [sorted(names) for names in listed] == [sorted(names) for names in LAYER_LINES]


def test_every_contract_is_explained() -> None:
    assert [first for first, _, _ in rows(section("### The contract"))] == list(CONTRACTS)


#: Code that looks like a path: with a folder, or with the ending of a file.
PATH = re.compile(r"(?:[\w.-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|md|toml)")


def located(path: str) -> Path:
    """A path of the page; those without a folder of the repository in front are the package's."""
    inside = PACKAGE / path
    return inside if inside.exists() else ROOT / path


def test_every_path_of_the_page_is_there() -> None:
    codes = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL))
    drawing = " ".join(re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
    paths = {code for code in codes if PATH.fullmatch(code)} | {
        word for word in re.findall(r"[\w/.]+", drawing) if PATH.fullmatch(word)
    }
    assert len(paths) > 80
    assert sorted(path for path in paths if not located(path).exists()) == []
    # Nothing that was meant as one was overlooked.
    assert [code for code in codes if "/" in code and not PATH.fullmatch(code)] == []


def names_in(module: Path) -> set[str]:
    """What a module defines: functions, classes, and the methods of those."""
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{one.name}"
                for one in node.body
                if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return names


def test_every_question_is_answered_by_functions_that_are_there() -> None:
    table = rows(section("## Where is ...?"))
    assert len(table) >= 20
    assert sum(question.startswith("★") for question, _ in table) >= 10
    absent = []
    for question, answer in table:
        places = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", answer)
        assert places, question
        absent += [f"{path}: {name}" for path, name in places if name not in names_in(PACKAGE / path)]
    assert absent == []


# -- the contracts ----------------------------------------------------------------------------------------------------

BROKEN = {
    "one way: each folder imports what stands below it": ("store/rows.py", "import celery_durable.runtime"),
    "no circles, on any level": ("waits/promise.py", "import celery_durable.waits.wait"),
    "waits, runs, the journal and the store know no Celery": ("store/rows.py", "import celery"),
    "contexts, waits, runs and the journal say no SQL": ("context/base.py", "import sqlalchemy"),
    "only the command line draws on a terminal": ("execution/forks.py", "import rich"),
}


def test_every_contract_is_broken_once() -> None:
    assert list(BROKEN) == list(CONTRACTS)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its contracts."""
    pytest.importorskip("importlinter", reason="contracts are checked with the packages of the group 'lint'")
    copy = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None, no_cache=True))"
    )
    # The folder of the command comes first, whatever else this process finds its package by.
    environment = {**os.environ, "PYTHONPATH": str(house), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], cwd=house, env=environment, capture_output=True, text=True)


def test_the_contracts_are_kept(house: Path) -> None:
    done = lint(house)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.parametrize("name", BROKEN)
def test_an_import_against_a_contract_is_found_and_told(name: str, house: Path) -> None:
    path, line = BROKEN[name]
    module = house / PACKAGE.name / path
    before = module.read_text(encoding="utf-8")
    # A late import, for those count too.
    module.write_text(f"{before}\n\ndef _late() -> None:\n    {line}\n", encoding="utf-8")
    try:
        done = lint(house)
    finally:
        module.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{name} BROKEN" in done.stdout
    told = done.stdout.split("Broken contracts")[1]
    assert [word for word in path.removesuffix(".py").split("/") if word not in told] == []
