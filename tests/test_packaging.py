"""The versions of packages: constraints/ is exact and complete, and agrees with the ranges in pyproject.toml."""

from __future__ import annotations

import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "constraints").glob("*.txt"))
UNPINNED = {"fc7", "fc7-client", "pip", "setuptools"}
GPU_EXTRAS = ("gpu", "scale", "otel", "heic", "export")


def exact_versions(path: Path) -> dict[str, Version]:
    """Return the version of each package in a constraints file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements(extras: tuple[str, ...]) -> list[Requirement]:
    """Return the requirements of the project with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def test_every_installed_package_has_its_exact_version_in_the_constraints() -> None:
    known = exact_versions(ROOT / "constraints/cpu.txt")
    # Without packages that others bundle: Ray adds a folder to sys.path.
    found = distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(each.name): Version(each.version) for each in found}
    wrong = {
        f"{name}=={version}": str(known.get(name))
        for name, version in installed.items()
        if name not in UNPINNED and known.get(name) != Version(version.public)  # without a build such as "+cpu"
    }
    assert wrong == {}, "Run: make lock"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_names_in_the_constraints_are_sorted_and_unique(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert names == sorted(set(names))


def test_the_gpu_image_has_the_same_versions_as_the_cpu_image() -> None:
    cpu, gpu = (exact_versions(ROOT / f"constraints/{name}.txt") for name in ("cpu", "gpu"))
    assert {name: str(gpu[name]) for name in cpu.keys() & gpu.keys() if gpu[name] != cpu[name]} == {}


def test_the_ranges_of_the_project_contain_the_exact_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cpu_extras = tuple(extra for extra in project["optional-dependencies"] if extra != "gpu")
    for name, extras in (("cpu", cpu_extras), ("gpu", GPU_EXTRAS)):
        exact = exact_versions(ROOT / f"constraints/{name}.txt")
        wrong = [
            str(each)
            for each in requirements(extras)
            if canonicalize_name(each.name) not in exact or exact[canonicalize_name(each.name)] not in each.specifier
        ]
        assert wrong == [], name
