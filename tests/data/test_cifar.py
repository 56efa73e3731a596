"""CIFAR from parquet shards, from torchvision's folders and by download; every way in which that can go wrong."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

from bayeslora.datasets import cifar_files
from bayeslora.datasets.base import Data
from bayeslora.datasets.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, COARSE_OF_FINE, SUPERCLASSES, Cifar10, Cifar100
from bayeslora.errors import ConfigError, DataError
from tests.cases import each

ENDINGS = {"train": ("00000-of-00002", "00001-of-00002"), "test": ("00000-of-00001",)}
LABELS = {"train": ([3, 1, 4], [1, 5]), "test": ([9, 2],)}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything outside its own folder."""
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BAYESLORA_DATA", str(tmp_path / "data"))


def pixels(count: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(file: Path, blobs: list[Any], labels: list[Any], label: str = "label", flat: bool = False) -> None:
    cells = blobs if flat else [{"bytes": blob, "path": None} for blob in blobs]
    kind = pa.binary() if flat else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": pa.array(cells, kind), label: pa.array(labels)}), file)


def parquet(folder: Path, label: str = "label", size: int = 32, flat: bool = False) -> Path:
    """A folder of five training images in two shards and two test images."""
    for split, endings in ENDINGS.items():
        for number, ending in enumerate(endings):
            labels = LABELS[split][number]
            blobs = [encoded(image) for image in pixels(len(labels), seed=10 * (split == "test") + number, size=size)]
            write_shard(folder / f"{split}-{ending}.parquet", blobs, list(labels), label, flat)
    return folder


TRAIN, TEST = np.concatenate([pixels(3, 0), pixels(2, 1)]), pixels(2, 10)


def same_images(inputs: torch.Tensor, images: np.ndarray) -> bool:
    return inputs.dtype == torch.uint8 and np.array_equal(inputs.numpy(), images.transpose(0, 3, 1, 2))


def check_toy(data: Data) -> None:
    """The images and labels are those `parquet` wrote, in order."""
    assert same_images(data.train.inputs, TRAIN)
    assert same_images(data.test.inputs, TEST)
    assert data.train.targets.tolist() == [3, 1, 4, 1, 5]
    assert data.test.targets.tolist() == [9, 2]
    assert len(data.validation) == 0


@each(("below", "flat"), [("", False), ("data", True), ("plain_text", False)])
def test_parquet_shards_are_read_in_order(tmp_path: Path, below: str, flat: bool) -> None:
    parquet(tmp_path / "cifar" / below, flat=flat)
    data = Cifar10(tmp_path / "cifar").load()
    check_toy(data)
    assert (data.name, data.num_classes, data.in_channels) == ("CIFAR-10", 10, 3)
    assert data.class_names == CIFAR10_CLASSES


def test_the_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parquet(tmp_path / "cifar")
    first = Cifar10(folder).load()
    monkeypatch.delattr(Image, "open")
    second = Cifar10(folder).load()
    check_toy(second)
    assert second.notes == first.notes


def test_the_cache_folder_can_be_chosen(tmp_path: Path) -> None:
    Cifar10(parquet(tmp_path / "cifar"), cache=tmp_path / "mine").load()
    assert [file.suffix for file in (tmp_path / "mine").iterdir()] == [".safetensors"]
    assert not (tmp_path / "cache").exists()


def test_model_inputs_are_normalised_by_the_given_constants(tmp_path: Path) -> None:
    data = Cifar10(parquet(tmp_path / "cifar"), mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0]).load()
    expected = (TRAIN.transpose(0, 3, 1, 2) / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape(
        [0.5, 1.0, 2.0], (3, 1, 1)
    )
    torch.testing.assert_close(data.transform(data.train.inputs), torch.from_numpy(expected).float())


def test_augmentation_reduced_copies_and_re_encoded_images_are_told_in_words(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "cifar")
    on, off = Cifar10(folder).load(), Cifar10(folder, augment=False).load()
    assert on.augment is not None
    assert on.augmentation == "random crop (padding 4) and horizontal flip"
    assert (off.augment, off.augmentation) == (None, "none")
    assert on.notes == (
        "5 train images where the official set has 50,000",
        "2 test images where the official set has 10,000",
    )
    (folder / "inexact.json").write_text('{"train": [0, 3], "test": [1]}')
    assert Cifar10(folder).load().notes[-1] == "3 images re-encoded"
    (folder / "inexact.json").write_text("[")
    with pytest.raises(DataError, match=r"inexact\.json is not a JSON object"):
        Cifar10(folder).load()


def test_validation_and_limits_share_out_the_training_images(tmp_path: Path) -> None:
    data = Cifar10(parquet(tmp_path / "cifar"), validation_size=2, limit_train=2, limit_test=1).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 1)
    assert not {*data.train.inputs.sum((1, 2, 3)).tolist()} & {*data.validation.inputs.sum((1, 2, 3)).tolist()}


def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "cifar", label="fine_label")
    fine, coarse = Cifar100(folder).load(), Cifar100(folder, labels="coarse").load()
    check_toy(fine)
    assert (fine.name, fine.class_names) == ("CIFAR-100", CIFAR100_CLASSES)
    assert (coarse.name, coarse.num_classes) == ("CIFAR-100 (20 coarse classes)", 20)
    # bear, aquarium_fish, beaver, aquarium_fish, bed
    names = [coarse.class_names[target] for target in coarse.train.targets]
    assert names == ["large_carnivores", "fish", "aquatic_mammals", "fish", "household_furniture"]
    assert len(set(CIFAR100_CLASSES)) == 100
    assert np.bincount(COARSE_OF_FINE).tolist() == [5] * len(SUPERCLASSES)


# What can be wrong with a folder


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def double(folder: Path) -> None:
    write_shard(folder / "train-00000-of-00001.parquet", [encoded(pixels(1, 5)[0])], [0])


def cut_short(folder: Path) -> None:
    shard = folder / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])


def damage_pages(folder: Path) -> None:
    shard = folder / "train-00001-of-00002.parquet"
    contents = bytearray(shard.read_bytes())
    contents[4:2000] = bytes(1996)
    shard.write_bytes(contents)


def one_row(blob: Any, label: Any = 0) -> Callable[[Path], None]:
    """Replace the second image of the second training shard."""
    good = encoded(pixels(1, 6)[0])
    return lambda folder: write_shard(folder / "train-00001-of-00002.parquet", [good, blob], [1, label])


def no_rows(folder: Path) -> None:
    empty = pa.table({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, folder / "test-00000-of-00001.parquet")


def other_classes(folder: Path) -> None:
    shard = folder / "test-00000-of-00001.parquet"
    note = '{"info": {"features": {"label": {"names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}}}}'
    pq.write_table(pq.read_table(shard).replace_schema_metadata({"huggingface": note}), shard)


def other_column(column: str, values: list[Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        columns = {"img": [encoded(pixels(1, 7)[0])], "label": [0]} | {column: values}
        pq.write_table(pa.table(columns), folder / "test-00000-of-00001.parquet")

    return write


PNG = encoded(pixels(1, 8)[0])
SHARD_2 = r"train-00001-of-00002\.parquet"


@each(
    ("spoil", "message"),
    [
        (drop("train-00001-of-00002.parquet"), rf"{SHARD_2} is missing in .*fetch it"),
        (drop("test-00000-of-00001.parquet"), r"holds no test-\*\.parquet, only train-00000"),
        (double, "shards of more than one train set"),
        (cut_short, rf"{SHARD_2} cannot be read.*fetch it again"),
        (damage_pages, rf"{SHARD_2} cannot be read.*fetch it again"),
        (one_row(PNG[:1500]), rf"{SHARD_2}, row 1 cannot be read as an image .*fetch the shard again"),
        (one_row(PNG[:200] + bytes(50) + PNG[250:]), rf"{SHARD_2}, row 1 cannot be read as an image"),
        (one_row(b"no image"), rf"{SHARD_2}, row 1 cannot be read as an image \(cannot identify image file\)"),
        (one_row(None), rf"{SHARD_2}, row 1 cannot be read as an image"),
        (one_row(encoded(pixels(1, 9, size=28)[0])), rf"{SHARD_2}, row 1: the image has 28x28 pixels, not 32x32"),
        (one_row(PNG, label=10), rf"{SHARD_2}, row 1: the label is 10, outside the 10 classes"),
        (one_row(PNG, label=-1), rf"{SHARD_2}, row 1: the label is -1, outside"),
        (one_row(PNG, label=None), rf"{SHARD_2}, row 1: the label is None, outside"),
        (no_rows, "holds no images"),
        (other_classes, r"test-.* holds another dataset: its classes are 0, 1, 2, 3, …, not CIFAR-10's"),
        (other_column("label", ["cat"]), "holds another dataset.*whole numbers in label"),
        (other_column("img", ["a.png"]), "holds another dataset.*encoded images in img"),
    ],
)
def test_a_spoilt_folder_is_refused_with_the_fix(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = parquet(tmp_path / "cifar")
    spoil(folder)
    with pytest.raises(DataError, match=message):
        Cifar10(folder).load()
    assert not (tmp_path / "cache").exists()


def test_folders_without_the_dataset_are_refused_by_the_constructor(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").touch()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "cifar-10-python.tar.gz").touch()
    (tmp_path / "other" / "cifar-100-python").mkdir(parents=True)
    for name, message in {
        "nowhere": "does not exist",
        "file": "is a file",
        "empty": "holds nothing",
        "notes": r"holds readme\.txt",
        "packed": "holds cifar-10-python.tar.gz, which is still packed: run `tar xzf",
        "other": "holds another dataset, cifar-100-python: choose dataset=cifar100",
        "other/cifar-100-python": "holds another dataset, cifar-100-python: choose dataset=cifar100",
    }.items():
        with pytest.raises(DataError, match=rf"{name} {message}.*dataset\.path must be a folder that holds") as caught:
            Cifar10(tmp_path / name)
        assert caught.value.exit_code == 2


def test_another_datasets_shards_are_refused_by_the_constructor(tmp_path: Path) -> None:
    parquet(tmp_path / "10")
    parquet(tmp_path / "100", label="fine_label")
    (tmp_path / "mrpc").mkdir()
    for split in ("train", "validation"):
        table = pa.table({"sentence1": ["a"], "sentence2": ["b"], "label": [1], "idx": [0]})
        pq.write_table(table, tmp_path / "mrpc" / f"{split}-00000-of-00001.parquet")
    for dataset, name, message in (
        (Cifar10, "100", r"another dataset \(perhaps CIFAR-100: choose dataset=cifar100\)"),
        (Cifar100, "10", r"another dataset \(perhaps CIFAR-10: choose dataset=cifar10\)"),
        (Cifar10, "mrpc", "another dataset: its columns are sentence1, sentence2, label, idx"),
        (Cifar100, "mrpc", "another dataset: its columns are sentence1, sentence2, label, idx"),
    ):
        with pytest.raises(DataError, match=message):
            dataset(tmp_path / name)


def test_all_wrong_settings_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Cifar100(tmp_path / "nowhere", labels="rough", validation_size=-1, limit_test=0, mean=[0.5], std=["1"] * 3)  # type: ignore[list-item]
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "dataset.labels='rough'",
        "dataset.validation_size",
        "dataset.limit_test",
        "dataset.mean",
        "dataset.std",
        str(tmp_path / "nowhere"),
    ]
    with pytest.raises(ConfigError, match="std must be above 0"):
        Cifar10(std=[0.2, 0.2, 0])


# torchvision's layout and downloads: torchvision's own code runs, on small batches whose checksums it is told


@dataclass(frozen=True)
class Official:
    """What torchvision takes for the official CIFAR-10: a folder of batches and its archive."""

    root: Path
    archive: Path


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Official:
    place = tmp_path / "official" / "cifar-10-batches-py"
    place.mkdir(parents=True)

    def batch(name: str, contents: dict[str, Any]) -> list[str]:
        (place / name).write_bytes(pickle.dumps(contents))
        return [name, hashlib.md5((place / name).read_bytes()).hexdigest()]

    def rows(images: np.ndarray) -> np.ndarray:
        return images.transpose(0, 3, 1, 2).reshape(len(images), -1)

    cifar = torchvision.datasets.CIFAR10
    first = batch("data_batch_1", {"data": rows(TRAIN[:3]), "labels": [3, 1, 4]})
    second = batch("data_batch_2", {"data": rows(TRAIN[3:]), "labels": [1, 5]})
    monkeypatch.setattr(cifar, "train_list", [first, second])
    monkeypatch.setattr(cifar, "test_list", [batch("test_batch", {"data": rows(TEST), "labels": [9, 2]})])
    meta = batch("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    monkeypatch.setattr(cifar, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    archive = tmp_path / "served" / cifar.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(place, place.name)
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return Official(place.parent, archive)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served(official: Official, monkeypatch: pytest.MonkeyPatch) -> Iterator[Official]:
    """The archive on a web server, where torchvision looks for it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=official.archive.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{official.archive.name}"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        yield official
        server.shutdown()


def test_torchvisions_folder_is_read(official: Official) -> None:
    for below in ("", "cifar-10-batches-py"):
        check_toy(Cifar10(official.root / below).load())


def test_torchvision_files_that_are_missing_or_changed_are_named(official: Official) -> None:
    for name in ("data_batch_2", "test_batch", "batches.meta"):
        file = official.root / "cifar-10-batches-py" / name
        content = file.read_bytes()
        file.write_bytes(content + b"\0")
        with pytest.raises(DataError, match=rf": {name} missing or not the official file.*unpack cifar-10-python\.tar"):
            Cifar10(official.root).load()
        file.unlink()
        with pytest.raises(DataError, match=rf": {name} missing or not the official file"):
            Cifar10(official.root).load()
        file.write_bytes(content)


class Malice:
    """Unpickling it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickles_that_are_not_the_official_ones_are_never_executed(tmp_path: Path) -> None:
    mark, place = tmp_path / "executed", tmp_path / "cifar-10-batches-py"
    place.mkdir()
    cifar = torchvision.datasets.CIFAR10
    for name in (*(name for name, _ in cifar.train_list + cifar.test_list), cifar.meta["filename"]):
        (place / name).write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(DataError, match="data_batch_1, data_batch_2"):
        Cifar10(tmp_path).load()
    assert not mark.exists()
    pickle.loads((place / "test_batch").read_bytes())  # noqa: S301  (the trap does work)
    assert mark.exists()


def test_without_a_path_the_archive_is_downloaded_once(
    served: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_toy(Cifar10().load())
    assert (tmp_path / "data" / "cifar-10-batches-py" / "test_batch").is_file()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/gone")
    check_toy(Cifar10().load())


def test_an_archive_put_by_hand_is_unpacked_without_a_network(official: Official, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    official.archive.rename(tmp_path / "data" / official.archive.name)
    check_toy(Cifar10(download=False).load())


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def test_a_failed_download_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dataset, torchvisions in ((Cifar10, torchvision.datasets.CIFAR10), (Cifar100, torchvision.datasets.CIFAR100)):
        monkeypatch.setattr(torchvisions, "url", f"http://127.0.0.1:{closed_port()}/{torchvisions.filename}")
        with pytest.raises(DataError, match=r"downloading failed: .*refused") as caught:
            dataset().load()
        message = str(caught.value)
        assert f"Fetch {torchvisions.filename} ({torchvisions.url}, md5 {torchvisions.tgz_md5})" in message
        assert f"put it into {tmp_path / 'data'}" in message
        assert "dataset.path=FOLDER" in message


def test_a_download_with_the_wrong_contents_fails_alike(served: Official, tmp_path: Path) -> None:
    served.archive.write_bytes(b"gone to another place")
    with pytest.raises(DataError, match=r"downloading failed: File not found or corrupted.*Fetch cifar-10-python"):
        Cifar10().load()


def test_a_host_that_does_not_answer_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_files, "DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        with pytest.raises(DataError, match=r"downloading failed: .*timed out"):
            Cifar10().load()
    assert socket.getdefaulttimeout() is None


def test_download_can_be_forbidden(served: Official, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.download=false.*Fetch cifar-10-python\.tar\.gz"):
        Cifar10(download=False).load()
    assert not (tmp_path / "data").exists()


# The real images


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoded")


@pytest.mark.realdata
@each(("dataset", "name", "each"), [(Cifar10, "cifar10", 5000), (Cifar100, "cifar100", 500)])
def test_the_real_images_are_all_there(
    real_data: Path, warm_cache: Path, dataset: type[Cifar10], name: str, each: int
) -> None:
    data = dataset(real_data / name, cache=warm_cache).load()
    assert data.train.inputs.shape == (50_000, 3, 32, 32)
    assert data.test.inputs.shape == (10_000, 3, 32, 32)
    assert set(data.train.targets.bincount().tolist()) == {each}
    assert set(data.test.targets.bincount().tolist()) == {each // 5}
    inputs = data.transform(data.train.inputs)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)
    assert data.notes == (("92 images re-encoded",) if name == "cifar10" else ())


@pytest.mark.realdata
def test_coarse_labels_follow_from_fine_ones(real_data: Path) -> None:
    for shard in sorted((real_data / "cifar100").glob("*.parquet")):
        table = pq.read_table(shard, columns=["fine_label", "coarse_label"])
        expected = np.array(COARSE_OF_FINE)[table["fine_label"].to_numpy()]
        assert np.array_equal(table["coarse_label"].to_numpy(), expected)


@pytest.mark.realdata
def test_real_folders_of_other_datasets_are_refused(real_data: Path) -> None:
    for dataset, name in ((Cifar10, "cifar100"), (Cifar100, "cifar10"), (Cifar10, "mrpc"), (Cifar100, "mrpc")):
        with pytest.raises(DataError, match="holds another dataset"):
            dataset(real_data / name)


@pytest.mark.realdata
def test_the_official_pickles_and_the_shards_hold_the_same_images(
    real_data: Path, tmp_path: Path, warm_cache: Path
) -> None:
    script = [sys.executable, os.fspath(real_data / "cifar100" / "to_torchvision.py"), os.fspath(tmp_path / "tv")]
    subprocess.run(script, check=True, capture_output=True)
    pickled = Cifar100(tmp_path / "tv").load()
    shards = Cifar100(real_data / "cifar100", cache=warm_cache).load()
    assert pickled.notes == ()
    for one, other in ((pickled.train, shards.train), (pickled.test, shards.test)):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
