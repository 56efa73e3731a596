"""The examples run as they stand, at tiny sizes, on what they make up and on a file of one's own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bayeslora.posterior import Posterior
from tests.run.tools import Command, ended, process

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def loaded(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Posterior]:
    """Runs an example's `main` with arguments, at the least size."""

    def run(name: str, *arguments: Any) -> Posterior:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments), "--draws", "3", "--burn-in", "4"])
        found: Posterior = loaded(EXAMPLES / f"{name}.py").main()
        return found

    return run


def check(posterior: Posterior, chains: int) -> None:
    """All draws are there, finite, and different."""
    draws = list(posterior.draws())
    assert len(draws) == 3 * chains
    assert all(t.isfinite().all() for draw in draws for t in draw.tensors.values())
    first, second = draws[:2]
    assert all(not torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


check_moved = partial(check, chains=2)


def test_there_are_five_of_some_sixty_lines() -> None:
    names = ["image_folder", "lora_on_text", "mlp_on_csv", "ner_on_text", "segmentation"]
    assert [script.stem for script in SCRIPTS] == names
    assert all(len(script.read_text().splitlines()) < 65 for script in SCRIPTS)


def test_a_network_on_a_table_of_its_own(main: Callable[..., Posterior], tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{i % 5},{i % 3},{(i % 7) * 2 + i % 5}\n" for i in range(40))
    (tmp_path / "own.csv").write_text("a,b,c,y\n" + rows)
    posterior = main("mlp_on_csv", tmp_path / "own.csv")
    check(posterior, chains=4)
    assert posterior.metrics is not None
    assert 0 < posterior.metrics["ensemble"]["rmse"] < 2


def test_a_network_on_images_that_are_made_up(main: Callable[..., Posterior], capsys: pytest.CaptureFixture) -> None:
    posterior = main("image_folder")
    check(posterior, chains=2)
    assert all(name.startswith("fc.") for draw in posterior.draws() for name in draw.tensors)
    assert "true square" in capsys.readouterr().out


def test_adapters_on_lines_that_are_made_up(main: Callable[..., Posterior], capsys: pytest.CaptureFixture) -> None:
    posterior = main("lora_on_text")
    check(posterior, chains=2)
    folder = Path(capsys.readouterr().out.split("adapters: ")[1].strip())
    assert len(list(folder.glob("*/adapter_model.safetensors"))) == 6


def test_words_of_a_text_of_ones_own(
    main: Callable[..., Posterior], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own.conll").write_text("Eve B-PER\nsees O\n\nIn O\nBonn B-LOC\nit O\nrains O\n" * 3)
    posterior = main("ner_on_text", tmp_path / "own.conll")
    check_moved(posterior)
    assert posterior.predict({"words": torch.ones(1, 4).long(), "form": torch.ones(1, 4).long()}).shape == (1, 3, 4)
    assert "true B-PER" in capsys.readouterr().out


def test_pixels_of_images_of_ones_own(
    main: Callable[..., Posterior], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(4):
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[number : number + 4] = 1
        mask[0, 0] = 255
        Image.fromarray(mask).save(tmp_path / f"{number}_mask.png")
        Image.fromarray((mask == 1) * np.uint8(200)).save(tmp_path / f"{number}.png")
    posterior = main("segmentation", tmp_path)
    check_moved(posterior)
    assert posterior.metrics is not None
    assert posterior.metrics["predicted"] == {"of": "positions", "predictions": 4 * 63, "examples": 4}
    assert "least sure of pixel" in capsys.readouterr().out


def test_a_package_of_ones_own_as_a_configuration(tmp_path: Path) -> None:
    """By the command, from the package's folder: its own dataset, model and experiment."""
    arguments = (
        "--config-dir",
        "conf",
        "experiment=moons",
        "size=smoke",
        f"run_dir={tmp_path / 'run'}",
    )
    run = ended(process("train", *arguments, cwd=EXAMPLES / "own_package"))
    assert run.code == 0, run.err
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    again = ended(
        process("evaluate", f"run_dir={tmp_path / 'run'}", "trust=mine", "report=false", cwd=EXAMPLES / "own_package")
    )
    assert again.code == 0, again.err


def test_what_the_package_lacks_is_told(command: Command, tmp_path: Path) -> None:
    conf = os.fspath(EXAMPLES / "own_package" / "conf")
    result = command("train", "--config-dir", conf, "experiment=moons", f"run_dir={tmp_path / 'run'}")
    assert result.code == 2
    assert "dataset._target_=mine.Moons cannot be imported (No module named 'mine')" in result.err
