"""The wheel works from another folder: `conf/` and the report's template travel in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from bayeslora.app.config import CONF_DIR
from tests.run.tools import TINY

CHECKOUT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """What a Python that does not look into the present folder prints; `path` comes first on its import path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    result = subprocess.run(
        [sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=CHECKOUT)
    (built,) = folder.glob("bayeslora-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    python("-m", "pip", "install", *options, "--target", str(site), str(wheel), cwd=site)
    return site


def test_the_wheel_holds_the_package_all_of_conf_and_the_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"bayeslora/conf/{file.relative_to(CONF_DIR)}" for file in Path(CONF_DIR).rglob("*.yaml")}
    source = {
        str(file.relative_to(CHECKOUT)) for file in (CHECKOUT / "bayeslora").rglob("*") if file.suffix in {".py", ".j2"}
    }
    assert len(conf) > 20
    assert "bayeslora/report/page.html.j2" in source
    assert conf | source <= names
    others = {name for name in names - conf - source if ".dist-info/" not in name}
    assert not {name for name in others if not name.startswith("bayeslora/")}


def test_the_command_composes_and_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = "import bayeslora.app.config as c; print(c.__file__, c.CONF_DIR, sep='\\n')"
    for found in python("-c", where, cwd=tmp_path, path=installed).splitlines():
        assert Path(found).is_relative_to(installed)
    composed = python("-m", "bayeslora.train", "--cfg", "job", "experiment=quickstart", cwd=tmp_path, path=installed)
    assert yaml.safe_load(composed)["name"] == "quickstart"
    assert list(tmp_path.iterdir()) == []
    out = python("-m", "bayeslora.train", *TINY, "evaluate.report=true", "run_dir=here", cwd=tmp_path, path=installed)
    assert "report: here/report/index.html" in out
    recorded = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert recorded["provenance"]["commit"] is None  # not of a checkout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["here"]
