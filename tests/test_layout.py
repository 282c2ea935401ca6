"""Limits on the size of folders, files and functions."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "index", "model_store")
CLIENT = "client/fc7_client"
MAX_MODULES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 15, 400, 60


def source_files(*suffixes: str, below: tuple[str, ...] = (*PACKAGES, CLIENT, "tests", "benchmarks")) -> Iterator[Path]:
    for folder in below:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements, without their expressions, which are most of the nodes."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(tree, name, ()):
            yield node
            yield from statements(node)


@cache
def functions_and_imports(path: Path) -> tuple[list[ast.FunctionDef | ast.AsyncFunctionDef], set[str], str | None]:
    """Return the functions of a file, the top-level packages that it imports, and its docstring."""
    tree = ast.parse((ROOT / path).read_text())
    functions, modules = [], set()
    for node in statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(node)
        elif isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0])
    return functions, modules, ast.get_docstring(tree)


def test_no_folder_has_more_than_15_modules() -> None:
    modules = Counter(path.parent for path in source_files(".py") if path.name != "__init__.py")
    assert {str(folder): count for folder, count in modules.items() if count > MAX_MODULES} == {}


def test_no_file_has_more_than_400_lines() -> None:
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in source_files(".py", ".js", ".css")}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_function_has_more_than_60_lines() -> None:
    long = {}
    for path in source_files(".py"):
        for node in functions_and_imports(path)[0]:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long[f"{path}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_every_package_folder_is_a_package_with_a_docstring() -> None:
    folders = {path.parent for path in source_files(".py", below=(*PACKAGES, CLIENT))}
    for folder in folders:
        _, _, docstring = functions_and_imports(folder / "__init__.py")
        assert docstring, f"{folder}/__init__.py has no docstring"


def test_the_client_imports_only_its_dependencies_and_no_package_of_the_service_imports_it() -> None:
    allowed = {*sys.stdlib_module_names, "fc7_client", "httpx", "pydantic"}
    assert {name: modules for name, modules in imports_of(CLIENT).items() if modules - allowed} == {}
    assert [name for name, modules in imports_of(*PACKAGES).items() if "fc7_client" in modules] == []


def imports_of(*folders: str) -> dict[str, set[str]]:
    """Return the top-level packages that each file imports, by path."""
    return {str(path): functions_and_imports(path)[1] for path in source_files(".py", below=folders)}
