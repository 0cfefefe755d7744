import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from floco.core.errors import FlocoError
from floco.data.sources import load

RED = Image.new("RGB", (6, 4), (200, 10, 30))


def grown(root: Path, files: Mapping[str, Image.Image | bytes] | list[str]) -> str:
    """The source of files that are made: pictures as they are given, bytes, or one of its own for each name."""
    root.mkdir(exist_ok=True)
    for i, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = files[name] if isinstance(files, Mapping) else Image.new("RGB", (6, 4), (i, 0, 0))
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
    return f"folder:{root}"


def tree(*classes: str, of: int = 2) -> list[str]:
    return [f"{c}/{i}.png" for c in classes for i in range(of)]


def made(pixels: Any, mode: str | None = None, **info: object) -> Image.Image:
    """A picture of numbers, in a mode that the numbers themselves may not tell."""
    image = Image.fromarray(np.asarray(pixels))
    image = image if mode is None else image.convert(mode)
    image.info.update(info)
    return image


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(samples: torch.Tensor) -> np.ndarray:
    """Of the first sample, channels last."""
    return samples[0].movedim(0, -1).numpy()


# Layouts


@pytest.mark.parametrize(
    "files",
    [
        tree("freight train", "passenger train", "bus", "tram"),
        tree("train-controller", "train-sensor", "dev-board", "chip"),
        tree("rapid_test", "blood_sample"),
        tree("test", "bus"),
        tree("train", "bus", "Validation", "tram"),
        [f"{k}/cam-{'train' if i % 2 else 'street'}-{i}.png" for k in ("cat", "dog") for i in range(4)],
        [f"{k}/{'test_' if i == 0 else 'p'}{i}.png" for k in ("good", "bad") for i in range(3)],
        ["cat/2024/may/1.png", "cat/2.png", "dog/train/1.png", "dog/test/1.png"],
        ["cat/1.PNG", "cat/2.Jpg", "dog/3.png"],
    ],
    ids=lambda files: files[0],
)
def test_every_folder_is_a_class_whatever_its_name_and_every_picture_below_is_read(
    files: list[str], tmp_path: Path
) -> None:
    samples = load(grown(tmp_path, files))
    expected = [f.split("/")[0] for f in files]
    assert samples.names == samples.schema.labels.values == tuple(sorted(set(expected)))
    assert np.bincount(samples.y).tolist() == [expected.count(c) for c in samples.names]
    assert samples.x_test is None


def test_each_picture_has_the_label_of_its_own_folder(tmp_path: Path) -> None:
    samples = load(grown(tmp_path, ["b/x.png", "a/deep/y.png", "c/z.png", "b/w.jpeg.png"]))
    assert [(int(x[0, 0, 0]), samples.names[y]) for x, y in zip(samples.x, samples.y, strict=True)] == [
        (1, "a"),
        (3, "b"),
        (0, "b"),
        (2, "c"),
    ]


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training", "testing"), ("Train", "TEST")])
def test_folders_that_all_have_names_of_splits_are_splits(train: str, test: str, tmp_path: Path) -> None:
    samples = load(
        grown(tmp_path, [f"{train}/cat/1.png", f"{train}/dog/deep/2.png", f"{train}/train/3.png", f"{test}/dog/4.png"])
    )
    assert samples.names == ("cat", "dog", "train")
    assert samples.x[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert (samples.x_test[:, 0, 0, 0].tolist(), samples.y_test.tolist()) == ([3], [1])


def test_a_split_for_training_alone_is_enough(tmp_path: Path) -> None:
    samples = load(grown(tmp_path, tree("train/cat", "train/dog")))
    assert (samples.names, samples.x_test) == (("cat", "dog"), None)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            tree("val/good", "val/bad", "test/good", "test/bad"),
            r"names of splits \(test, val\), and train is not among them: rename one to train, or all of them",
        ),
        (
            tree("train/a", "train/b", "val/a", "test/a"),
            r"not val: rename it, put its pictures into train or test, or move it away",
        ),
        (tree("train/a", "train/b", "dev/a", "Eval/a"), r"not Eval, dev: rename"),
        (tree("train/a", "train/b", "training/a"), "one folder for each split, got train and training"),
        (tree("train/a", "test/a", "testing/a"), "one folder for each split, got test and testing"),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png", "test/d/1.png"],
            "c, d of test are not in train",
        ),
        (tree("train/a", "train/b", "test/A"), "A of test are not in train"),
        (["train/a/1.png", "train/2.png"], r"SPLIT/CLASS, and train/2.png are in no class"),
        (
            tree("train", "test"),
            r"test/0.png, test/1.png, train/0.png, train/1.png are in no class.*if the folders are classes, rename one",
        ),
        (["1.png", "cat/2.png", "dog/3.png"], "named after their class; 1.png are in none"),
        ([*tree("cat", "dog"), "test.png"], "test.png are in none"),
        ([], r"must hold pictures, CLASS/picture.png or train/CLASS/picture.png, and there is none$"),
        (tree("only"), "2 classes at least, got 1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_layouts_that_cannot_be_meant_are_refused_by_name(files: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(FlocoError, match=says):
        load(grown(tmp_path, files))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_table_of_labels_is_refused_and_not_ignored(name: str, tmp_path: Path) -> None:
    source = grown(tmp_path, {"cat/1.png": RED, "dog/1.png": RED, name: b"file_name,label\n"})
    with pytest.raises(FlocoError, match=f"{name} is not read: move it away, or .* module:function"):
        load(source)


def test_files_that_are_no_pictures_are_counted_and_named(tmp_path: Path) -> None:
    no = {f"cat/{n}": b"?" for n in ("a.txt", "b.heic", "c.h5", "d.pdf", "noending")}
    source = grown(tmp_path, {"cat/1.png": RED, "dog/1.png": RED, **no})
    with pytest.warns(
        UserWarning,
        match=r"5 of 7 files are left out, because .*: cat/a.txt, cat/b.heic, cat/c.h5, cat/d.pdf, cat/noending$",
    ) as caught:
        assert len(load(source).y) == 2
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.raises(FlocoError, match=r"there is none among 1 files: cat/a.txt"):
        load(grown(tmp_path / "none", {"cat/a.txt": b"?"}))


def test_hidden_files_and_those_of_the_system_are_skipped(tmp_path: Path) -> None:
    no = dict.fromkeys(
        (".DS_Store", "Thumbs.db", "cat/desktop.ini", "cat/._1.png", ".cache/a/1.png", "__MACOSX/cat/1.png", ".png"),
        b"?",
    )
    samples = load(grown(tmp_path, {"cat/1.png": RED, "dog/1.png": RED, **no}))
    assert (samples.names, len(samples.y)) == (("cat", "dog"), 2)


@pytest.mark.parametrize(
    ("files", "empty", "says"),
    [
        (tree("cat", "dog"), "mouse/old", "hold no picture are left out: mouse$"),
        (tree("train/cat", "train/dog", "test/dog"), "test/cat", "hold no picture are left out: test/cat$"),
        (tree("train/cat", "train/dog"), "test", "hold no picture are left out: test$"),
        (
            tree("train/cat", "train/dog", "more"),
            "more/none",
            r"train is read as a class and not as a split, because .* no split: more$",
        ),
    ],
)
def test_what_may_have_been_meant_otherwise_is_said(files: list[str], empty: str, says: str, tmp_path: Path) -> None:
    source = grown(tmp_path, files)
    (tmp_path / empty).mkdir(parents=True)
    with pytest.warns(UserWarning, match=says) as caught:
        load(source)
    assert len(caught) == 1


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    grown(tmp_path / "elsewhere", ["1.png", "2.png"])
    source = grown(tmp_path / "data", tree("cat"))
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "cat" / "again").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    samples = load(source)
    assert (samples.names, samples.y.tolist()) == (("cat", "dog"), [0, 0, 1, 1])


def test_a_node_can_know_of_classes_that_it_has_no_folder_for(tmp_path: Path) -> None:
    samples = load(grown(tmp_path, tree("dog")), labels=("cat", "dog", "mouse"))
    assert (samples.names, samples.y.tolist()) == (("cat", "dog", "mouse"), [1, 1])


# Files


BROKEN = {
    "empty.png": b"",
    "stub.png": b"\x89PNG",
    "text.jpg": b"no picture",
    "half.png": stored(made(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)), "PNG")[:2000],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    source = grown(tmp_path, {"cat/1.png": RED, "dog/1.png": RED, f"dog/{name}": BROKEN[name]})
    with pytest.raises(FlocoError, match=rf"1 of 3 pictures cannot be read: dog/{name} \(\w+Error: .*\); replace them"):
        load(source)


def test_of_many_damaged_files_a_few_are_named(tmp_path: Path) -> None:
    source = grown(tmp_path, {"cat/1.png": RED, **{f"dog/{i}.png": b"" for i in range(9)}})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        FlocoError,
        match=r"10 of 11 pictures cannot be read: cat/gone.png, dog/0.png, .*dog/6.png and 2 more \(FileNotFound",
    ):
        load(source)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.tiff", "TIFF"), ("a.png", "PNG"), ("a.webp", "WEBP")])
def test_a_picture_of_several_frames_is_refused_and_one_of_a_single_frame_is_not(
    name: str, kind: str, tmp_path: Path
) -> None:
    blue = Image.new("RGB", (6, 4), (0, 0, 255))
    single = load(grown(tmp_path / "one", {f"cat/{name}": stored(RED, kind), f"dog/{name}": stored(blue, kind)}))
    assert tuple(single.x.shape) == (2, 3, 4, 6)
    several = grown(
        tmp_path / "more",
        {f"cat/{name}": stored(RED, kind, save_all=True, append_images=[blue]), f"dog/{name}": stored(blue, kind)},
    )
    with pytest.raises(FlocoError, match=f"must be a single one, and cat/{name} holds 2 frames"):
        load(several)


def test_a_photo_with_a_preview_is_the_photo(tmp_path: Path) -> None:
    photo = stored(RED, "MPO", save_all=True, append_images=[Image.new("RGB", (3, 2))])
    assert (
        abs(pixels(load(grown(tmp_path, {"cat/1.jpg": photo, "dog/1.mpo": photo})).x).astype(int) - [200, 10, 30]).max()
        <= 3
    )


def test_pictures_are_turned_as_their_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    turned = stored(made(image), "PNG", exif=exif)
    samples = load(grown(tmp_path, {"cat/1.png": turned, "dog/1.png": made(np.rot90(image, -1))}))
    assert torch.equal(samples.x[0], samples.x[1])
    assert samples.x[0, 0].numpy().tolist() == np.rot90(image, -1).tolist()


def test_pictures_of_several_sizes_are_named_with_their_sizes(tmp_path: Path) -> None:
    files = {"train/cat/1.png": RED, "train/dog/1.png": RED, "test/cat/1.png": RED.resize((5, 7))}
    with pytest.raises(FlocoError, match=r"train/cat/1.png is 6 x 4 and test/cat/1.png is 5 x 7"):
        load(grown(tmp_path, files))


# Modes

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
WIDE = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700
COLOUR = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)


def with_alpha(grey: bool = False, alpha: int = 255) -> np.ndarray:
    a = np.full((4, 6, 1), 255, np.uint8)
    a[0, 0] = alpha
    return np.concatenate([GREY[..., None] if grey else COLOUR, a], axis=-1)


def palette(transparent: bool | bytes = False) -> bytes:
    """A palette picture of two colours; its numbers are 1 and 0, and its colours are not."""
    image = Image.new("P", (6, 4), 1)
    image.putpalette([9, 8, 7, 200, 10, 30])
    image.putpixel((0, 0), 0)
    return stored(
        image, "PNG", **({} if transparent is False else {"transparency": 0 if transparent is True else transparent})
    )


CLEAR = np.dstack([np.full((4, 6, 3), (200, 10, 30), np.uint8), np.full((4, 6), 255, np.uint8)])
CLEAR[0, 0] = (9, 8, 7, 0)
HALF = CLEAR.copy()
HALF[0, 0, 3] = 100
BITS = np.arange(24).reshape(4, 6) % 2 == 0
CMYK = Image.new("CMYK", (6, 4), (0, 255, 255, 0))
FLOAT = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
MODES = {
    "palette": ("png", palette(), CLEAR[..., :3]),
    "palette, transparent": ("png", palette(True), CLEAR),
    "palette, half transparent": ("png", palette(bytes([100, 255])), HALF),
    "palette, opaque": ("png", palette(bytes([255, 255])), CLEAR[..., :3]),
    "palette, no such colour": ("png", palette(bytes([255, 255, 0])), CLEAR[..., :3]),
    "1-bit": ("png", stored(made(BITS), "PNG"), BITS * 255),
    "grey": ("png", stored(made(GREY), "PNG"), GREY),
    "grey, one number transparent": (
        "png",
        stored(made(GREY), "PNG", transparency=0),
        np.dstack([GREY, GREY, GREY, (GREY != 0) * 255]),
    ),
    "grey, no such number": ("png", stored(made(GREY), "PNG", transparency=3), GREY),
    "grey, opaque": ("png", stored(made(with_alpha(grey=True)), "PNG"), GREY),
    "grey, transparent": (
        "png",
        stored(made(with_alpha(grey=True, alpha=7)), "PNG"),
        np.dstack([GREY, GREY, with_alpha(grey=True, alpha=7)]),
    ),
    "colour": ("png", stored(made(COLOUR), "PNG"), COLOUR),
    "colour, opaque": ("png", stored(made(with_alpha()), "PNG"), COLOUR),
    "colour, transparent": ("png", stored(made(with_alpha(alpha=254)), "PNG"), with_alpha(alpha=254)),
    "CMYK": ("tiff", stored(CMYK, "TIFF"), np.full((4, 6, 3), (255, 0, 0))),
    "YCbCr": ("tiff", stored(RED.convert("YCbCr"), "TIFF"), np.asarray(RED.convert("YCbCr").convert("RGB"))),
    "LAB": ("tiff", stored(Image.new("LAB", (6, 4), (0, 128, 128)), "TIFF"), np.zeros((4, 6, 3), np.uint8)),
    "16-bit": ("png", stored(made(WIDE), "PNG"), WIDE),
    "16-bit, the other order": (
        "tiff",
        stored(Image.frombytes("I;16B", (6, 4), WIDE.astype(">u2").tobytes()), "TIFF"),
        WIDE,
    ),
    "32-bit": ("tiff", stored(made(WIDE.astype(np.int32) - 9), "TIFF"), WIDE.astype(np.int32) - 9),
    "float": ("tiff", stored(made(FLOAT), "TIFF"), FLOAT),
}
ROUNDED = {"LAB": 1}  # by the conversion of colours


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_has_the_pixels_that_a_viewer_shows(mode: str, tmp_path: Path) -> None:
    ending, content, expected = MODES[mode]
    samples = load(grown(tmp_path, {f"cat/1.{ending}": content, f"dog/1.{ending}": content}))
    shown = np.atleast_3d(expected)
    assert samples.x.dtype == (torch.uint8 if shown.max() <= 255 and shown.min() >= 0 else torch.float32)
    assert tuple(samples.x.shape) == (2, shown.shape[-1], 4, 6)
    assert np.abs(pixels(samples.x) - shown.astype(float)).max() <= ROUNDED.get(mode, 0)


ALL = {name: (ending, content, np.atleast_3d(shown)) for name, (ending, content, shown) in MODES.items()}


@pytest.mark.parametrize(
    ("train", "test", "channels", "says"),
    [
        (("grey", "grey"), "colour", 3, "2 grey and 1 coloured pictures are all read as RGB"),
        (("1-bit", "palette"), "CMYK", 3, "1 grey and 2 coloured pictures are all read as RGB"),
        (
            ("colour", "colour"),
            "colour, transparent",
            4,
            "2 coloured and 1 partly transparent pictures are all read as RGBA",
        ),
        (
            ("grey", "colour"),
            "grey, transparent",
            4,
            "1 grey and 1 coloured and 1 partly transparent pictures are all read as RGBA",
        ),
        (("grey, opaque", "1-bit"), "palette, transparent", 4, "2 grey and 1 partly transparent"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* channel 3 is always the same")  # all training pictures are opaque
def test_pictures_of_several_modes_have_one_form_in_both_parts(
    train: tuple[str, str], test: str, channels: int, says: str, tmp_path: Path
) -> None:
    files = {
        f"{place}.{ALL[n][0]}": ALL[n][1]
        for place, n in zip(("train/cat/1", "train/dog/1", "test/dog/1"), (*train, test), strict=True)
    }
    with pytest.warns(UserWarning, match=says) as caught:
        samples = load(grown(tmp_path, files))
    assert sum("are all read as" in str(w.message) for w in caught) == 1
    for x, name in zip((*samples.x, *samples.x_test), (*train, test), strict=True):
        shown = np.broadcast_to(ALL[name][2][..., :3], (4, 6, 3)) if ALL[name][2].shape[-1] < 4 else ALL[name][2]
        expected = np.concatenate([shown, np.full((4, 6, channels - shown.shape[-1]), 255)], axis=-1)
        assert x.movedim(0, -1).tolist() == expected.tolist(), name


@pytest.mark.parametrize(
    ("modes", "says"),
    [
        (("16-bit", "grey"), r"one scale; 8-bit are dog/1.png, 16- or 32-bit are cat/0.png: convert"),
        (("grey", "16-bit", "colour"), r"8-bit are cat/0.png, elk/2.png, 16- or 32-bit are dog/1.png"),
        (("32-bit", "float"), r"16- or 32-bit are cat/0.tiff, floating-point are dog/1.tiff"),
        (("float", "1-bit"), r"8-bit are dog/1.png, floating-point are cat/0.tiff"),
    ],
)
def test_pictures_of_several_scales_are_refused_by_name(modes: tuple[str, ...], says: str, tmp_path: Path) -> None:
    files = {
        f"{c}/{i}.{MODES[m][0]}": MODES[m][1]
        for i, (c, m) in enumerate(zip(("cat", "dog", "elk"), modes, strict=False))
    }
    with pytest.raises(FlocoError, match=says):
        load(grown(tmp_path, files))


def test_pictures_of_16_and_32_bits_keep_their_numbers(tmp_path: Path) -> None:
    samples = load(grown(tmp_path, {"cat/1.png": MODES["16-bit"][1], "dog/1.tiff": MODES["32-bit"][1]}))
    assert (samples.x[0, 0].tolist(), samples.x[1, 0].tolist()) == (WIDE.tolist(), (WIDE.astype(int) - 9).tolist())


def test_colours_of_16_bits_are_said_to_lose_the_lower_ones(tmp_path: Path) -> None:
    """A PNG of 48 bits for each pixel, by hand: Pillow does not write it."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + (row.astype(np.uint16) * 256 + 7).astype(">u2").tobytes() for row in COLOUR)
    deep = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    source = grown(tmp_path, {"cat/1.png": deep, "dog/1.png": RED})
    with pytest.warns(
        UserWarning,
        match=r"1 of 2 pictures have 16 bits for each of several channels, of which the upper 8 are read: cat/1.png",
    ):
        samples = load(source)
    assert pixels(samples.x).tolist() == COLOUR.tolist()


# Data sets


def dataset(images: list[bytes | None], labels: list[int] | None = None) -> Any:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Column

    data = {
        "label": [i % 2 for i in range(len(images))] if labels is None else labels,
        "image": [b and {"bytes": b, "path": None} for b in images],
    }
    return Dataset.from_dict(data, features=Features({"label": ClassLabel(names=["cat", "dog"]), "image": Column()}))


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> str:
    """A set on the hub: a folder stands where its name would, and its cache is beside it."""
    (folder / "set").mkdir()
    for name, part in parts.items():
        part.to_parquet(folder / "set" / f"{name}.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    return f"hub:{folder / 'set'}"


def content(*modes: str) -> list[bytes]:
    return [MODES[m][1] for m in modes]


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_a_data_set_are_read_by_the_same_rules(mode: str) -> None:
    samples = load(dataset(content(mode, mode)))
    shown = ALL[mode][2]
    assert tuple(samples.x.shape) == (2, shown.shape[-1], 4, 6)
    assert np.abs(pixels(samples.x) - shown.astype(float)).max() <= ROUNDED.get(mode, 0)


def test_both_parts_of_a_hub_set_have_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub(
        tmp_path, monkeypatch, train=dataset(content("grey", "grey, opaque")), test=dataset(content("palette"), [1])
    )
    with pytest.warns(UserWarning, match=r"^hub:.*: 2 grey and 1 coloured pictures are all read as RGB"):
        samples = load(source)
    assert (samples.names, samples.y.tolist(), samples.y_test.tolist()) == (("cat", "dog"), [0, 1], [1])
    assert (pixels(samples.x)[..., 2].tolist(), pixels(samples.x_test).tolist()) == (
        GREY.tolist(),
        CLEAR[..., :3].tolist(),
    )


def test_splits_of_a_hub_set_that_are_not_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = dataset(content("grey", "grey"))
    source = hub(tmp_path, monkeypatch, train=part, validation=part)
    with pytest.warns(UserWarning, match="further splits are left out: validation$") as caught:
        assert load(source).x_test is None
    assert caught[0].filename == __file__


def test_a_hub_set_needs_a_split_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = dataset(content("grey", "grey"))
    with pytest.raises(
        FlocoError,
        match="must have a split train, and has validation, test: load it in a function of your own, module:function",
    ):
        load(hub(tmp_path, monkeypatch, validation=part, test=part))


GIF = stored(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4))])


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (
            [*content("grey", "grey"), b"\x89PNG"],
            r"the source: 1 of 3 pictures cannot be read: picture 2 \(UnidentifiedImageError",
        ),
        (
            [*content("grey"), BROKEN["half.png"], *content("grey")],
            r"1 of 3 pictures cannot be read: picture 1 \(OSError",
        ),
        ([*content("grey", "grey"), None], r"cannot be read: picture 2 \(ValueError: there is none\)"),
        ([*content("colour"), GIF], "a single one, and picture 1 holds 2 frames"),
        ([*content("grey"), stored(made(GREY[:3]), "PNG")], "picture 0 is 6 x 4 and picture 1 is 6 x 3"),
        (content("grey", "16-bit"), "8-bit are picture 0, 16- or 32-bit are picture 1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_picture_of_a_data_set_is_named_by_its_number(images: list[bytes | None], says: str) -> None:
    with pytest.raises(FlocoError, match=says):
        load(dataset(images))


def test_a_picture_of_a_hub_set_is_named_by_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlocoError, match="train picture 0 is 6 x 4 and test picture 1 is 6 x 3"):
        load(
            hub(
                tmp_path,
                monkeypatch,
                train=dataset(content("grey", "grey")),
                test=dataset([*content("grey"), stored(made(GREY[:3]), "PNG")]),
            )
        )


def test_pictures_that_the_user_transforms_are_as_the_user_made_them() -> None:
    data = dataset(content("grey", "colour", "16-bit", "palette"))
    turned = data.with_transform(
        lambda rows: {"label": rows["label"], "image": [np.full((5, 5), 9 + v, np.uint8) for v in rows["label"]]}
    )
    assert load(turned).x[:, 0, 0, 0].tolist() == [9, 10, 9, 10]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(FlocoError, match="same shape"):
        load(dataset([]))


def test_a_format_for_arrays_does_not_change_pictures() -> None:
    assert (
        pixels(load(dataset(content("palette", "palette")).with_format("numpy")).x).tolist() == CLEAR[..., :3].tolist()
    )


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_masks_in_items_are_labels_whatever_their_mode(mode: str) -> None:
    labels = np.arange(4 * 36).reshape(4, 6, 6) % (2 if mode == "1" else 3)

    def mask(i: int) -> Image.Image:
        if mode in ("1", "I;16"):
            return Image.fromarray(labels[i].astype(bool if mode == "1" else np.uint16))
        made = Image.fromarray(labels[i].astype(np.uint8))
        if mode == "P":
            made.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        return made

    class Items:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> object:
            return Image.fromarray(np.full((6, 6, 3), i, np.uint8)), mask(i)

    assert mask(0).mode == mode
    made = load(Items(), task="segmentation")
    assert made.y.tolist() == labels.tolist()
