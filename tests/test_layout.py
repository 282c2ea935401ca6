"""Limits on the size of folders, files and functions."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "index", "model_store")
MAX_MODULES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 15, 400, 60


def source_files(*suffixes: str, below: tuple[str, ...] = (*PACKAGES, "tests", "benchmarks")) -> Iterator[Path]:
    for folder in below:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)


def test_no_folder_has_more_than_15_modules() -> None:
    modules = Counter(path.parent for path in source_files(".py") if path.name != "__init__.py")
    assert {str(folder): count for folder, count in modules.items() if count > MAX_MODULES} == {}


def test_no_file_has_more_than_400_lines() -> None:
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in source_files(".py", ".js", ".css")}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_function_has_more_than_60_lines() -> None:
    long = {}
    for path in source_files(".py"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_every_package_folder_is_a_package_with_a_docstring() -> None:
    folders = {path.parent for path in source_files(".py", below=PACKAGES)}
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
        assert docstring, f"{folder}/__init__.py has no docstring"
