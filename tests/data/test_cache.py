"""The cache of decoded data: used when it may be, rebuilt when it must be, never in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bayeslora.cache import Tensors, cache_folder, cached, data_folder, fingerprint
from bayeslora.errors import DataError
from tests.cases import each


class Decoder:
    """Decodes a file into its bytes, and counts how often."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.calls = 0

    def __call__(self) -> Tensors:
        self.calls += 1
        return {"bytes": torch.tensor(list(self.file.read_bytes()), dtype=torch.uint8), "sizes": torch.zeros(0)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.bin"
    file.write_bytes(b"0123456789" * 50)
    return file


def test_data_are_decoded_once(source: Path, tmp_path: Path) -> None:
    decode = Decoder(source)
    first, second = (cached("toy", [source], decode, tmp_path / "cache") for _ in range(2))
    assert decode.calls == 1
    assert second.keys() == first.keys()
    assert all(torch.equal(second[name], first[name]) for name in first)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [f"toy-{fingerprint([source])}.safetensors"]


def test_changed_contents_of_the_same_size_are_decoded_again(source: Path, tmp_path: Path) -> None:
    decode = Decoder(source)
    cached("toy", [source], decode, tmp_path / "cache")
    source.write_bytes(b"9876543210" * 50)
    assert cached("toy", [source], decode, tmp_path / "cache")["bytes"][0] == ord("9")
    assert decode.calls == 2


def test_moved_sources_are_recognised_and_renamed_ones_are_not(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(source, tmp_path / "elsewhere" / source.name)
    renamed = shutil.copy(source, tmp_path / "other.bin")
    assert fingerprint([Path(moved)]) == fingerprint([source])
    assert fingerprint([Path(renamed)]) != fingerprint([source])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip_a_bit_of_the_data(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)


def garble_the_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


@each("damage", [empty, truncate, flip_a_bit_of_the_data, garble_the_header])
def test_a_damaged_cache_file_is_rebuilt(source: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    decode, folder = Decoder(source), tmp_path / "cache"
    wanted = decode()["bytes"]
    cached("toy", [source], decode, folder)
    damage(next(folder.iterdir()))
    assert torch.equal(cached("toy", [source], decode, folder)["bytes"], wanted)
    assert decode.calls == 3
    assert torch.equal(cached("toy", [source], decode, folder)["bytes"], wanted)
    assert decode.calls == 3


def test_a_cache_folder_that_cannot_be_written_costs_speed_only(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decode, folder = Decoder(source), source / "below a file"
    for calls in (1, 2):
        assert len(cached("toy", [source], decode, folder)["bytes"]) == 500
        assert decode.calls == calls
    assert "cannot be written" in caplog.text


def test_a_failed_decoding_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    def fail() -> Tensors:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cached("toy", [source], fail, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.bin cannot be read"):
        fingerprint([tmp_path / "gone.bin"])


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BAYESLORA_CACHE", "BAYESLORA_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    default = tmp_path / ".cache" / "bayeslora"
    assert (cache_folder(), data_folder()) == (default, default / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (cache_folder(), data_folder()) == (tmp_path / "xdg/bayeslora", tmp_path / "xdg/bayeslora/data")
    monkeypatch.setenv("BAYESLORA_CACHE", "~/mine")
    monkeypatch.setenv("BAYESLORA_DATA", str(tmp_path / "data"))
    assert (cache_folder(), data_folder()) == (tmp_path / "mine", tmp_path / "data")
