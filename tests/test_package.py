"""The wheel holds the package with its data files, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fmnist_lightning", "tests", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"fmnist_lightning"}
    package = {str(path.relative_to(tmp_path)) for path in (tmp_path / "fmnist_lightning").rglob("*") if path.is_file()}
    assert package <= names
    assert {name for name in package if not name.endswith(".py")} == {
        "fmnist_lightning/py.typed",
        "fmnist_lightning/models/weights/README.md",
        "fmnist_lightning/models/weights/fine.safetensors",
        "fmnist_lightning/report/templates/report.html",
    }
