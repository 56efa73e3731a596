"""Image files of every kind through every reader, and what a folder of images may hold beside them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bayeslora.datasets import Hub, ImageFolder, Npz, from_examples
from bayeslora.datasets.images import decode_images, decoding_notes
from bayeslora.errors import DataError
from tests.cases import each

SIDE = 32
RNG = np.random.default_rng(0)
LEVELS = RNG.permutation(SIDE * SIDE).reshape(SIDE, SIDE)
"""Every whole number below 1,024 once."""
COLOURS = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ALPHA = np.where(np.arange(SIDE) < SIDE // 2, 0, 255).astype(np.uint8)[None].repeat(SIDE, 0)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))


def chw(pixels: np.ndarray) -> np.ndarray:
    """Expected pixels as [3, H, W]."""
    return np.broadcast_to(pixels, (3, SIDE, SIDE)) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def scaled(levels: np.ndarray, white: float) -> np.ndarray:
    return (255 * levels / white).round()


def turned(file: Path) -> np.ndarray:
    """A smooth picture stored on its side, as a camera held upright stores it."""
    pixels = np.add.outer(np.arange(SIDE) * 6, np.arange(SIDE)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(file, exif=exif, quality=100, subsampling=0)
    return np.rot90(pixels, -1)


def hidden_colours(file: Path) -> np.ndarray:
    Image.fromarray(np.dstack([COLOURS, ALPHA])).save(file)
    return np.where(ALPHA[..., None] == 0, 255, COLOURS)


def hidden_grey(file: Path) -> np.ndarray:
    Image.fromarray(np.dstack([COLOURS[..., 0], ALPHA]), "LA").save(file)
    return np.where(ALPHA == 0, 255, COLOURS[..., 0])


def half_transparent(file: Path) -> np.ndarray:
    Image.fromarray(np.dstack([COLOURS, np.full_like(ALPHA, 51)])).save(file, lossless=True)  # a fifth of the colour
    return 0.2 * COLOURS + 0.8 * 255


def palette(file: Path, **transparency: int) -> np.ndarray:
    image = Image.fromarray((LEVELS % 4).astype(np.uint8), "P")
    image.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250, 9, 9, 9])
    image.save(file, **transparency)
    return np.array(image.convert("RGB"))


def hidden_in_a_palette(file: Path) -> np.ndarray:
    return np.where((LEVELS % 4 == 2)[..., None], 255, palette(file, transparency=2))


def saved(pixels: np.ndarray, expected: np.ndarray) -> Callable[[Path], np.ndarray]:
    def write(file: Path) -> np.ndarray:
        Image.fromarray(pixels).save(file)
        return expected

    return write


def cmyk(file: Path) -> np.ndarray:
    Image.fromarray(np.dstack([255 - COLOURS, np.zeros_like(ALPHA)]), "CMYK").save(file)
    return COLOURS


KINDS: dict[str, tuple[str, Callable[[Path], np.ndarray]]] = {
    "16-bit PNG": ("png", saved((LEVELS * 64).astype(np.uint16), scaled(LEVELS * 64, 65_535))),
    "16-bit TIFF": ("tif", saved((LEVELS * 64).astype(np.uint16), scaled(LEVELS * 64, 65_535))),
    "32-bit TIFF": ("tiff", saved((LEVELS * 64).astype(np.int32), scaled(LEVELS * 64, 65_535))),
    "12 bits in 16": ("png", saved((LEVELS * 4).astype(np.uint16), scaled(LEVELS * 4, 4095))),
    "float TIFF": ("tif", saved((LEVELS / 1023).astype(np.float32), scaled(LEVELS, 1023))),
    "float TIFF of bytes": ("tif", saved((LEVELS % 200).astype(np.float32), LEVELS % 200)),
    "float TIFF below 0": ("tif", saved((LEVELS - 500.0).astype(np.float32), scaled(LEVELS, 1023))),
    "black and white": ("png", saved(LEVELS % 2 == 1, 255 * (LEVELS % 2))),
    "greyscale": ("bmp", saved(COLOURS[..., 0], COLOURS[..., 0])),
    "palette": ("gif", palette),
    "transparent palette": ("png", hidden_in_a_palette),
    "RGBA": ("png", hidden_colours),
    "LA": ("png", hidden_grey),
    "half transparent": ("webp", half_transparent),
    "CMYK": ("tif", cmyk),
    "turned by EXIF": ("jfif", turned),
}
TOLERANCE = {"turned by EXIF": 4}
"""Of a format that loses something; else one level, for rounding."""


def parquet(
    folder: Path, cells: list[Any], labels: list[Any], names: list[str] | None = None, kind: str = "int64"
) -> Path:
    import datasets

    of_labels = datasets.ClassLabel(names=names) if names else datasets.Value(kind)
    features = datasets.Features({"image": datasets.Image(), "label": of_labels})
    folder.mkdir(parents=True)
    made = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    made.to_parquet(str(folder / "train.parquet"))
    return folder


@each("kind", KINDS)
def test_every_reader_gives_what_a_viewer_shows(tmp_path: Path, kind: str) -> None:
    """Two files of one kind a class: from a folder, through the hub's library from the folder and from parquet."""
    ending, write = KINDS[kind]
    files = [tmp_path / "own" / name / f"{i}.{ending}" for name in "ab" for i in range(2)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        expected = write(file)
    cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
    rows = parquet(tmp_path / "rows", cells, [0, 0, 1, 1], ["a", "b"])
    for reader in (ImageFolder(tmp_path / "own", size=SIDE), Hub(str(tmp_path / "own")), Hub(str(rows))):
        data = reader.load()
        for image in (*data.train.inputs, *data.test.inputs):
            difference = np.abs(np.broadcast_to(image.numpy(), (3, SIDE, SIDE)) - chw(np.asarray(expected, float)))
            assert difference.max() <= TOLERANCE.get(kind, 1)


def test_images_of_pillow_are_read_as_their_files_are_and_masks_as_classes(tmp_path: Path) -> None:
    for number, (ending, write) in enumerate(KINDS.values()):
        expected = np.asarray(write(tmp_path / f"{number}.{ending}"), float)
        with Image.open(tmp_path / f"{number}.{ending}") as file:
            if file.mode[0] in "IF":
                with pytest.raises(DataError, match="levels of more than 8 bits; give arrays"):
                    from_examples([(file, 0), (file, 1)])
                continue
            image = from_examples([(file, 0), (file, 1)]).train.inputs[0]
        difference = np.abs(np.broadcast_to(image.numpy(), (3, SIDE, SIDE)) - chw(expected))
        assert difference.max() <= (4 if ending == "jfif" else 1), ending
    mask = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3, "P")
    mask.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    assert from_examples([(mask, mask), (mask, mask)]).train.targets.unique().tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"sizes \(2, 2\), \(3, 2\); scale them to one"):
        from_examples([(Image.new("L", size), 0) for size in ((2, 2), (3, 2))])


def colours_of_16_bits(file: Path, white: int) -> None:
    """A PNG of colours of 16 bits with levels 0 to white, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    rows = np.linspace(0, white, 8 * 8 * 3).astype(">u2").reshape(8, -1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = (8).to_bytes(4) * 2 + bytes([16, 2, 0, 0, 0])
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def test_colours_of_16_bits_are_cut_to_8_and_refused_where_little_is_left(tmp_path: Path) -> None:
    for white in (4095, 65_535):
        colours_of_16_bits(tmp_path / f"{white}.png", white)
    files = [(tmp_path / f"{white}.png", f"{white}.png") for white in (4095, 65_535)]
    decoded = decode_images(files, 8, channels=3)
    assert (decoded["images"][0].max(), decoded["images"][1].max()) == (15, 255)
    assert decoding_notes(decoded) == ["2 images with colours of 16 bits, of which the upper 8 are taken"]
    with pytest.raises(DataError, match=r"4095\.png has colours of 16 bits, .* save them as images of 8 bits"):
        decode_images(files[:1], 8, channels=3)


def test_levels_of_more_than_8_bits_are_scaled_alike_and_what_was_changed_is_counted(tmp_path: Path) -> None:
    for level in (1000, 2000, 4000):
        Image.new("I;16", (4, 4), level).save(tmp_path / f"{level}.png")
    hidden_colours(tmp_path / "rgba.png")
    frames = [Image.new("L", (4, 4), level) for level in (7, 200)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    files = [(tmp_path / name, name) for name in ("1000.png", "2000.png", "4000.png", "rgba.png", "two.tif")]
    decoded = decode_images(files, 4, channels=1)
    assert decoded["images"][[0, 1, 2, 4], 0, 0, 0].tolist() == [62, 125, 249, 7]
    assert decoding_notes(decoded) == [
        "1 image with transparency laid on white",
        "1 image file with several frames, of which the first is taken",
        "3 images of more than 8 bits: levels 0 to 4095 scaled to 0 to 255",
    ]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damaged_files_are_refused_by_name_or_read() -> None:
    """Bytes changed and lost in 100 files of each format: Pillow's readers raise many kinds of errors."""
    random = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "AVIF", "ICO"):
        buffer = io.BytesIO()
        Image.fromarray(COLOURS[:16, :16]).save(buffer, form)
        refused = []
        for _ in range(100):
            content = bytearray(buffer.getvalue())
            for _ in range(3):
                content[random.integers(min(len(content), 400))] = random.integers(256)
            if random.random() < 0.3:
                del content[random.integers(len(content)) :]
            try:
                decode_images([(bytes(content), "this file")], 4, channels=3)
            except DataError as error:
                refused.append(str(error))
        assert refused, form
        assert all(message.startswith("this file cannot be read as an image (") for message in refused)


def spoilt(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "levels are NaN":
        Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(buffer, "TIFF")
        return buffer.getvalue()
    Image.fromarray(COLOURS).save(buffer, "JPEG" if kind == "truncated" else "PNG")
    whole = buffer.getvalue()
    return {
        "truncated": whole[: len(whole) // 2],
        "identify": b"no image",
        "no content": b"",
        "damaged": whole[:60] + bytes(40) + whole[100:],
    }[kind]


@each("kind", ["truncated", "identify", "no content", "damaged", "levels are NaN"])
def test_an_image_that_cannot_be_read_is_named_by_every_reader(tmp_path: Path, kind: str) -> None:
    for name in "ab":
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(COLOURS).save(tmp_path / "own" / name / f"{i}.png")
    broken = tmp_path / "own" / "b" / "1.png"
    broken.write_bytes(spoilt(kind))
    for reader in (ImageFolder(tmp_path / "own"), Hub(str(tmp_path / "own"))):
        with pytest.raises(DataError, match=r"b/1\.png cannot be read as an image .*remove or mend it"):
            reader.load()
    good = (tmp_path / "own" / "a" / "0.png").read_bytes()
    cells = [{"bytes": content, "path": None} for content in (good, good, good, broken.read_bytes())]
    with pytest.raises(DataError, match=r"rows, t\w+ set, row \d cannot be read as an image"):
        Hub(str(parquet(tmp_path / "rows", cells, [0, 1, 0, 1], ["a", "b"]))).load()


# What a folder holds


def folder(root: Path, *files: str) -> Path:
    """Different images, and other files, under these names."""
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".txt", "._1.jpg", ".db", ".csv")):
            (root / name).write_bytes(b"no image")
        else:
            Image.new("L", (8, 8), number).save(root / name, "PNG")
    return root


CATS_AND_DOGS = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(3)]


def test_hidden_files_are_skipped_at_every_depth_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    beside = ["cat/.ipynb_checkpoints/0-checkpoint.jpg", "dog/._1.jpg", "cat/more/.cache/deep/1.png", "dog/Thumbs.db"]
    others = [".git/objects/1.png", "__MACOSX/cat/0.jpg", "readme.txt", "cat/labels.csv", "cover.png"]
    more = ["cat/more/4.JFIF", "dog/more/5.gif"]
    root = folder(tmp_path / "pets", *CATS_AND_DOGS, *beside, *others, *more)
    for reader in (ImageFolder(root, size=8), Hub(str(root), size=8)):
        data = reader.load()
        assert (len(data.train) + len(data.test), data.class_names) == (8, ("cat", "dog"))
        assert data.notes == (
            "2 images held out for the test set",
            "6 hidden files left out",
            "2 files of other kinds left out (.csv, .txt)",
            "1 image outside the classes' folders left out (in .)",
        )


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "disk", *CATS_AND_DOGS)
    root = tmp_path / "own"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(elsewhere / "cat")
    (root / "dog" / "first").symlink_to(elsewhere / "dog")
    (root / "dog" / "loop").symlink_to(root)
    data = ImageFolder(root, size=8).load()
    assert torch.cat([data.train.targets, data.test.targets]).bincount().tolist() == [3, 3]


def test_test_images_that_are_training_images_too_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "own", *(f"{s}/{name}" for s in ("train", "test") for name in CATS_AND_DOGS))
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (root / "test" / name).write_bytes((root / "train" / name).read_bytes())
    note = "2 of 6 test images also among the training images"
    assert ImageFolder(root).load().notes == (note,)
    x = RNG.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=np.arange(6) % 2, x_test=x[:2], y_test=np.arange(2))
    assert Npz(tmp_path / "own.npz").load().notes == ("2 of 2 test images also among the training images",)


def test_images_in_several_classes_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "own", *(f"{s}/{name}" for s in ("train", "test") for name in CATS_AND_DOGS))
    (root / "train/dog/1.jpg").write_bytes((root / "train/cat/1.jpg").read_bytes())
    assert ImageFolder(root).load().notes == ("1 training image under several classes",)


SPLITS = [
    ("Train", "Test"),
    ("training", "testing"),
    ("TRAIN", "Val"),
    ("Train", "valid"),
    ("train_images", "Test-Set"),
]


@each(("train", "test"), SPLITS)
def test_splits_are_known_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    files = [f"{train}/{name}" for name in CATS_AND_DOGS] + [f"{test}/cat/9.png", f"{test}/dog/9.png"]
    root = folder(tmp_path / "own", *files, "unlabelled/1.png")
    for reader in (ImageFolder(root, size=8), Hub(str(root))):
        data = reader.load()
        assert (data.class_names, len(data.train), data.test.targets.tolist()) == (("cat", "dog"), 6, [0, 1])
        assert data.notes == ("1 image outside the classes' folders left out (in unlabelled)",)


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    root = folder(tmp_path / "vehicles", *(f"{name}/{i}.png" for name in ("bus", "train") for i in range(3)))
    assert ImageFolder(root).load().class_names == ("bus", "train")


def test_test_images_without_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    root = folder(tmp_path / "own", *(f"train/{name}" for name in CATS_AND_DOGS), "test/1.jpg", "test/2.jpg")
    assert ImageFolder(root).load().notes == (
        "2 images held out for the test set",
        "2 images outside the classes' folders left out (in test)",
    )


@each(
    ("files", "message"),
    [
        (["Train/1.png", "Test/1.png"], "holds Test, Train, which are names of splits, with no folder for each class"),
        (["train/a/1.png", "Train/a/1.png", "test/a/1.png"], "holds Train and train; keep one"),
        (["train/a/1.png", "train/b/1.png", "cats/1.png"], "holds train of a split beside cats; put the folders"),
        (["test/a/1.png", "test/b/1.png"], "holds test of a split beside no training images"),
        (["a/train/1.png", "a/test/1.png", "b/train/1.png", "b/test/1.png"], "splits in each folder of a class"),
        (["a/1.png", "a/2.png", "b/.1.png", "b/readme.txt"], "b holds no images"),
        ([".a/1.png", "b/1.png"], "two at least"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageFolder(folder(tmp_path / "own", *files)).load()


# Rows and arrays


def test_rows_without_image_or_label_are_left_out_and_counted(tmp_path: Path) -> None:
    images = [Image.fromarray(np.roll(COLOURS, i, 0)) for i in range(20)]
    cells = [None if i in (3, 4) else image for i, image in enumerate(images)]
    labels = [{5: None, 6: -1}.get(i, i % 2) for i in range(20)]
    data = Hub(str(parquet(tmp_path / "rows", cells, labels, ["n", "p"])), size=8).load()
    assert len(data.train) + len(data.test) == 16
    assert set(data.train.targets.tolist()) == {0, 1}
    assert {"2 examples without an image left out", "2 examples without a label left out"} < {*data.notes}


def test_the_label_minus_one_is_a_class_only_where_it_cannot_be_a_missing_one(tmp_path: Path) -> None:
    images = [Image.fromarray(np.roll(COLOURS, i, 0)) for i in range(20)]
    signs = Hub(str(parquet(tmp_path / "signs", images, [2 * (i % 2) - 1 for i in range(20)])), size=8).load()
    assert signs.class_names == ("-1", "1")
    with pytest.raises(DataError, match=r"the label -1 may be a class or stand for no label"):
        Hub(str(parquet(tmp_path / "other", images, [i % 3 - 1 for i in range(20)])), size=8).load()
    with pytest.raises(DataError, match=r"the labels are numbers such as 0\.5, not classes"):
        Hub(str(parquet(tmp_path / "real", images, [0.5, 1.5] * 10, kind="float32")), size=8).load()
    with pytest.raises(DataError, match="no example has both an image"):
        Hub(str(parquet(tmp_path / "none", images, [None] * 20)), size=8).load()


@each("dtype", [np.uint8, np.float32])
@each("channels", [1, 3, 4, 13])
def test_the_axis_of_the_channels_is_found(tmp_path: Path, channels: int, dtype: type) -> None:
    x = RNG.integers(0, 256, (10, channels, 9, 9)).astype(dtype)
    for array in (x, x.transpose(0, 2, 3, 1)):
        np.savez(tmp_path / "own.npz", x_train=array, y_train=np.arange(10) % 2, x_test=array, y_test=np.arange(10) % 2)
        data = Npz(tmp_path / "own.npz", standardise=False).load()
        assert torch.equal(data.train.inputs, torch.from_numpy(x))
        if dtype is np.float32:  # scaled by channel, as images of bytes are
            ours = Npz(tmp_path / "own.npz").load().train.inputs
            mean, sd = (getattr(x, what)((0, 2, 3), keepdims=True) for what in ("mean", "std"))
            torch.testing.assert_close(ours, torch.from_numpy((x - mean) / sd), atol=1e-5, rtol=1e-5)
        assert ("4 channels, taken as they are: transparency is not applied" in data.notes) == (
            channels == 4 and dtype is np.uint8
        )


@each("shape", [(4, 4, 4), (3, 9, 3), (1, 9, 4), (5, 6, 7)])
def test_images_whose_channels_cannot_be_told_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((10, *shape), np.uint8), y=np.arange(10) % 2)
    with pytest.raises(DataError, match=r"may be \[N, C, H, W\] or \[N, H, W, C\]"):
        Npz(tmp_path / "own.npz").load()


def test_an_array_without_names_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.zeros((9, 2)))
    with pytest.raises(DataError, match=r"holds one array \[9, 2\], as \.npy does, and no targets.*np\.savez"):
        Npz(tmp_path / "own.npy").load()
