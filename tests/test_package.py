"""The wheel holds the package with its data files and recipes, and nothing else; it runs without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the project, built from a copy."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("fmnist_lightning", "recipes", "tests", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds the unpacked wheel alone."""
    folder = tmp_path_factory.mktemp("packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def files_below(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


def test_wheel_holds_package_and_recipes_alone(installed: Path) -> None:
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"fmnist_lightning"}
    package = files_below(ROOT / "fmnist_lightning")
    recipes = {f"recipes/{name}" for name in files_below(ROOT / "recipes")}
    assert "recipes/schema.json" in recipes
    assert files_below(installed / "fmnist_lightning") == package | recipes
    assert {name for name in package if not name.endswith(".py")} == {
        "py.typed",
        "models/weights/README.md",
        "models/weights/fine.safetensors",
        "report/templates/report.html",
    }


def test_wheel_has_the_console_command(installed: Path) -> None:
    [information] = installed.glob("*.dist-info")
    distribution: Distribution = PathDistribution(information)
    assert [(one.name, one.value) for one in distribution.entry_points] == [
        ("fmnist", "fmnist_lightning.__main__:main")
    ]


def run_installed(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def test_wheel_finds_recipes_by_name(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, tmp_path, "-m", "fmnist_lightning", "train", "--config", "fast", "--print_config")
    assert "batch_size: 384\n" in done.stdout


def test_wheel_names_commands_that_it_has(installed: Path, tmp_path: Path) -> None:
    done = run_installed(installed, tmp_path, "-m", "fmnist_lightning", "join")
    assert done.returncode == 2
    assert "python -m fmnist_lightning join --help" in done.stderr
    done = run_installed(
        installed, tmp_path, "-c", "from fmnist_lightning.cli.shell import require; require(['none'], 'x', 'tune')"
    )
    assert done.stderr.endswith("pip install 'fmnist-lightning[tune]'\n")


def test_import_of_the_package_imports_no_torch(tmp_path: Path) -> None:
    code = "import fmnist_lightning, sys; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert run_installed(ROOT, tmp_path, "-c", code).returncode == 0


def test_public_names_are_imported_at_first_use() -> None:
    import fmnist_lightning

    assert set(fmnist_lightning.__all__) <= set(dir(fmnist_lightning))
    assert all(getattr(fmnist_lightning, name).__name__ == name for name in fmnist_lightning.__all__)
    with pytest.raises(AttributeError, match="Trainer"):
        fmnist_lightning.Trainer  # noqa: B018
