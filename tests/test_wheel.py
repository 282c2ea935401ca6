"""The built packages work without the checkout: `make test-wheel`."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import httpx
import pytest

from service.settings import PREFIX
from tests.support import pictures
from tests.support.server import process_server
from tests.support.tiny_model import publish_tiny_model
from tests.test_layout import PACKAGES

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]
ASK = """
import sys
from fc7_client import Client
with Client(sys.argv[1]) as client:
    print(client.put_image("one", sys.argv[2]).outcome, client.similar("one").mode, client.classify(sys.argv[2]).model)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that the build leaves no files in it."""
    folder = tmp_path_factory.mktemp("source")
    ignored = ignore_patterns(".*", "var", "build", "dist", "*.egg-info", "__pycache__", "node_modules")
    return copytree(ROOT, folder / "fc7", ignore=ignored)


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist and the wheel of both packages. Each wheel is built from its sdist."""
    folder = tmp_path_factory.mktemp("dist")
    python = make_environment(tmp_path_factory.mktemp("tools"))
    run(python, "-m", "pip", "install", "--quiet", "build>=1.3,<2")
    for project in (source, source / "client"):
        run(python, "-m", "build", "--outdir", folder, project)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment with both wheels and the extra cpu."""
    python = make_environment(tmp_path_factory.mktemp("clean"))
    [fc7], [client] = dist.glob("fc7-*.whl"), dist.glob("fc7_client-*.whl")
    constraints = ROOT / "constraints" / "cpu.txt"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, f"{fc7}[cpu]", client)
    return python


def make_environment(folder: Path) -> Path:
    run(Path(sys.executable), "-m", "venv", folder)
    return folder / "bin" / "python"


def run(program: Path, *arguments: str | Path) -> str:
    """Run a program outside the checkout, and return its standard output."""
    ended = subprocess.run(
        [program, *arguments],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith(PREFIX)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def files_below(source: Path, *packages: str) -> set[str]:
    """Return the files of the packages that git would track."""
    paths = (path for package in packages for path in (source / package).rglob("*"))
    return {str(path.relative_to(source)) for path in paths if path.is_file()}


def test_the_wheels_have_every_file_of_their_packages_and_nothing_else(source: Path, dist: Path) -> None:
    for pattern, folder, packages in (
        ("fc7-*.whl", source, PACKAGES),
        ("fc7_client-*.whl", source / "client", ("fc7_client",)),
    ):
        [wheel] = dist.glob(pattern)
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert names == files_below(folder, *packages)


def test_the_sdists_have_license_and_readme_and_no_tests(dist: Path) -> None:
    for pattern in ("fc7-*.tar.gz", "fc7_client-*.tar.gz"):
        [sdist] = dist.glob(pattern)
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert {"LICENSE", "README.md", "pyproject.toml"} <= names
        assert [name for name in names if name.startswith(("tests", "benchmarks"))] == []


def test_the_installed_packages_serve(installed: Path, tmp_path: Path) -> None:
    home, photo = tmp_path / "home", tmp_path / "photo.jpg"
    publish_tiny_model(home)
    photo.write_bytes(pictures.jpeg(1))
    run(installed, "-m", "pip", "check")
    where = run(installed, "-c", "import service, fc7_client; print(service.__file__, fc7_client.__file__)")
    assert where.count(str(installed.parents[1])) == 2
    fc7 = installed.with_name("fc7")
    assert run(fc7, "--version").startswith("fc7 ")
    with process_server(home, command=[str(fc7)], PYTHONPATH="") as server:
        assert run(installed, "-c", ASK, server.url, photo).split() == ["added", "exact", "tiny:1"]
        page = httpx.get(server.url)
        assert page.status_code == 200
        assert "<html" in page.text
