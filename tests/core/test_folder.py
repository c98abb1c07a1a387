"""A folder of one's own images: what is read, what is skipped, how it is split, and where it is kept."""

import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets, transforms

from vae_core import data
from vae_core._files import folder as folders
from vae_core._files.folder import eight_bit, places, read_image
from vae_core.data import from_folder

RNG = np.random.default_rng(0)
UPRIGHT = np.kron([[250, 90], [10, 170]], np.ones((8, 8))).astype(np.uint8)  # four squares, all different


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def write(folder: Path, *names: str, array: np.ndarray | None = None) -> None:
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(9 + k % 3, 7 + k % 4) if array is None else array).save(folder / name)


def numbered(n: int, folder: str = "") -> list[str]:
    return [f"{folder}{k:03}.png" for k in range(n)]


def everything(d: data.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([d.x_train, d.x_test]), torch.cat([d.y_train, d.y_test])


# The data set


@pytest.mark.parametrize(("grey", "channels"), [(False, 3), (True, 1)])
def test_from_folder_gives_uint8_images_of_one_size(folder, root, grey, channels):
    write(folder, *numbered(20))
    d = from_folder(folder, 8, grey=grey, root=root)
    assert d.image_shape == (channels, 8, 8)
    assert (d.x_train.dtype, d.y_train.dtype) == (torch.uint8, torch.int64)
    assert len(d.x_train) + len(d.x_test) == 20
    assert d.class_names == ()
    assert not everything(d)[1].any()


def test_from_folder_takes_the_formats_that_people_have(folder, root):
    for ending in ("png", "jpg", "JPEG", "gif", "webp", "tiff", "bmp", "ppm", "tga", "ico", "jp2"):
        Image.fromarray(np.full((16, 16, 3), 100, np.uint8)).save(folder / f"a.{ending}")
    d = from_folder(folder, 4, root=root)
    assert len(everything(d)[0]) == 11
    assert ((everything(d)[0].int() - 100).abs() <= 3).all()


def test_from_folder_keeps_pngs_of_the_size_asked_for_value_by_value(folder, root):
    arrays = {name: noise(6, 6) for name in numbered(12)}
    for name, array in arrays.items():
        write(folder, name, array=array)
    found, _ = everything(from_folder(folder, 6, root=root))
    assert {x.permute(1, 2, 0).numpy().tobytes() for x in found} == {array.tobytes() for array in arrays.values()}


def smooth(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(noise(6, 6)).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (41, 33), (5, 9), (64, 64)])
def test_read_image_takes_the_middle_square_to_half_a_pixel(shape, tmp_path):
    array, side = smooth(*shape), min(shape)
    write(tmp_path, "a.png", array=array)
    top, left = ((n - side) / 2 for n in shape)
    square = Image.fromarray(array).resize((16, 16), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    assert (read_image(tmp_path / "a.png", 16, grey=False) == np.asarray(square)).all()


@pytest.mark.parametrize("shape", [(32, 48), (96, 64), (64, 64)])
def test_read_image_agrees_with_torchvision_where_margins_are_whole(shape, tmp_path):
    """Away from the two cut sides, where torchvision's filter still sees what is cut off afterwards."""
    write(tmp_path, "a.png", array=(image := smooth(*shape)))
    resize_and_crop = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16)])
    expected = np.asarray(resize_and_crop(Image.fromarray(image)))
    found = read_image(tmp_path / "a.png", 16, grey=False)
    assert np.abs(found.astype(int) - expected)[1:-1, 1:-1].max() <= 1


def test_read_image_makes_a_chequerboard_of_single_pixels_grey(tmp_path):
    write(tmp_path, "a.png", array=(np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert (np.abs(read_image(tmp_path / "a.png", 8, grey=True).astype(int) - 127.5) <= 3).all()


def test_read_image_decodes_a_large_jpeg_small_and_it_looks_the_same(tmp_path):
    smooth = Image.fromarray(noise(5, 5)).resize((1200, 900), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    smooth.save(tmp_path / "a.png")
    jpeg, png = (read_image(tmp_path / f"a.{ending}", 32, grey=False).astype(int) for ending in ("jpg", "png"))
    assert np.abs(jpeg - png).max() <= 6


# Modes


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def upright_of(path: Path) -> np.ndarray:
    return read_image(path, 16, grey=True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
def test_read_image_applies_exif_orientation(orientation, ending, tmp_path):
    """Each file stores the image turned; the tag says how to turn it back (EXIF 2.3, table of Orientation)."""
    a = UPRIGHT
    stored = [a, a[:, ::-1], a[::-1, ::-1], a[::-1], a.T, np.rot90(a), a[::-1, ::-1].T, np.rot90(a, -1)][
        orientation - 1
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{ending}", exif=exif)
    assert np.abs(upright_of(tmp_path / f"a.{ending}").astype(int) - UPRIGHT).max() <= 12


def test_read_image_reads_an_image_with_damaged_exif_data(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff nonsense")
    assert (upright_of(tmp_path / "a.png") == UPRIGHT).all()


def rgba(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([np.full((8, 8), value, np.uint8) for value in (200, 100, 0, alpha)]))


@pytest.mark.parametrize(("alpha", "expected"), [(255, (200, 100, 0)), (0, (255, 255, 255)), (51, (244, 224, 204))])
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_read_image_lays_transparent_images_on_white(alpha, expected, ending, tmp_path):
    """Opacity a leaves 255 (1 - a) + a v."""
    rgba(alpha).save(tmp_path / f"a.{ending}")
    assert np.abs(read_image(tmp_path / f"a.{ending}", 8, grey=False).astype(int) - expected).max() <= 1


def test_read_image_lays_grey_with_alpha_on_white(tmp_path):
    Image.fromarray(np.dstack([np.zeros((8, 8), np.uint8), UPRIGHT[::2, ::2]]), "LA").save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 8, grey=True) == 255 - UPRIGHT[::2, ::2]).all()


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_read_image_lays_a_palette_with_a_transparent_entry_on_white(ending, tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2, "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / f"a.{ending}", transparency=0)
    found = read_image(tmp_path / f"a.{ending}", 8, grey=False)
    assert {tuple(pixel) for pixel in found.reshape(-1, 3).tolist()} == {(255, 255, 255), (200, 100, 50)}


def test_read_image_looks_up_a_palette(tmp_path):
    image = Image.fromarray((UPRIGHT > 100).astype(np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 16, grey=False)
    assert (found == np.where((UPRIGHT > 100)[..., None], (200, 100, 50), (10, 20, 30))).all()


def test_read_image_makes_one_bit_images_black_and_white(tmp_path):
    Image.fromarray(UPRIGHT > 100).save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "1"
    assert (upright_of(tmp_path / "a.png") == 255 * (UPRIGHT > 100)).all()


def test_read_image_makes_a_cmyk_jpeg_rgb(tmp_path):
    image = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=95)
    assert mode_of(tmp_path / "a.jpg") == "CMYK"
    assert np.abs(read_image(tmp_path / "a.jpg", 4, grey=False).astype(int) - (200, 100, 50)).max() <= 4


def test_read_image_scales_a_pgm_of_sixteen_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + (UPRIGHT.astype(">u2") * 257).tobytes())
    assert (upright_of(tmp_path / "a.pgm") == UPRIGHT).all()


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_read_image_scales_sixteen_bits_and_does_not_cut_them(ending, tmp_path):
    Image.fromarray(UPRIGHT.astype(np.uint16) * 257).save(tmp_path / f"a.{ending}")
    assert (upright_of(tmp_path / f"a.{ending}") == UPRIGHT).all()


def test_eight_bit_reads_big_endian_sixteen_bits():
    image = Image.frombytes("I;16B", (16, 16), (UPRIGHT.astype(">u2") * 257).tobytes())
    assert (np.asarray(eight_bit(image, grey=True)) == UPRIGHT).all()


def test_read_image_scales_floating_point_tiffs_from_0_to_1(tmp_path):
    Image.fromarray((UPRIGHT / 255).astype(np.float32)).save(tmp_path / "a.tiff")
    assert (upright_of(tmp_path / "a.tiff") == UPRIGHT).all()


@pytest.mark.parametrize(
    "levels", [np.float32([[0, 200]]), np.float32([[np.nan, 0]]), np.int32([[-1, 5]]), np.int32([[0, 70000]])]
)
def test_eight_bit_refuses_levels_without_a_known_range(levels):
    with refused(ValueError, "levels", "expected 0 to"):
        eight_bit(Image.fromarray(levels), grey=True)


@pytest.mark.parametrize("ending", ["gif", "webp", "tiff", "png"])
def test_read_image_takes_the_first_of_several_frames(ending, tmp_path):
    frames = [Image.new("RGB", (8, 8), (level, level, level)) for level in (200, 100, 0)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **lossless(ending))
    assert (read_image(tmp_path / f"a.{ending}", 8, grey=True) == 200).all()


def lossless(ending: str) -> dict:
    return {"lossless": True} if ending == "webp" else {}


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]
)
def test_eight_bit_makes_every_common_mode_grey_or_rgb(mode, grey):
    assert eight_bit(Image.new(mode, (3, 2)), grey).mode == ("L" if grey else "RGB")


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_read_image_brings_images_of_odd_sizes_to_the_size(shape, tmp_path):
    write(tmp_path, "a.png", array=np.full((*shape, 3), 77, np.uint8))
    assert (read_image(tmp_path / "a.png", 8, grey=False) == 77).all()


# What is skipped


def zero_bytes(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no image\n")


def truncated(path):
    write(path.parent, path.name, array=noise(40, 40))
    path.write_bytes(path.read_bytes()[:2000])


def truncated_jpeg(path):
    Image.fromarray(noise(80, 80)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def broken_link(path):
    path.symlink_to(path.parent / "nowhere.png")


def pipe(path):
    os.mkfifo(path)


def postscript(path):
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n")


BROKEN = [zero_bytes, text, truncated, truncated_jpeg, broken_link, pipe, postscript]


@pytest.mark.parametrize("broken", BROKEN)
def test_from_folder_names_and_skips_a_broken_file(broken, folder, root):
    write(folder, *numbered(5))
    broken(folder / "bad.png")
    with pytest.warns(UserWarning, match=r"^1 of 6 image files were skipped: bad\.png \([^)]+") as caught:
        d = from_folder(folder, 8, root=root)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert len(everything(d)[0]) == 5


def test_from_folder_counts_all_in_one_warning_and_names_three(folder, root):
    write(folder, *numbered(5))
    for k in range(7):
        text(folder / f"bad{k}.jpg")
    with pytest.warns(UserWarning, match="^7 of 12 ") as caught:
        from_folder(folder, 8, root=root)
    (warning,) = caught
    said = str(warning.message)
    assert said.startswith("7 of 12 image files were skipped: bad0.jpg (")
    assert all(name in said for name in ("bad1.jpg", "bad2.jpg", "..."))
    assert "bad3.jpg" not in said


def test_from_folder_skips_images_of_too_many_pixels_by_name(folder, root, monkeypatch):
    write(folder, *numbered(4))
    for name, side in (("bomb.png", 40), ("warning.png", 30)):
        write(folder, name, array=noise(side, side))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with pytest.warns(UserWarning, match=r"2 of 6 .*bomb\.png \(too many pixels\), warning\.png \(too many pixels\)"):
        assert len(everything(from_folder(folder, 8, root=root))[0]) == 4


def test_from_folder_ignores_hidden_files_and_what_is_no_image_without_a_word(folder, root):
    write(folder, *numbered(4))
    write(folder, ".hidden.png", "__MACOSX/._000.png", ".thumbnails/a.png")
    for name in ("notes.txt", "Thumbs.db", "labels.csv", "film.mpg", "paper.pdf", "drawing.eps", "no_ending"):
        text(folder / name)
    assert len(everything(from_folder(folder, 8, root=root))[0]) == 4


def test_from_folder_names_a_phones_heic_files(folder, root):
    write(folder, *numbered(4))
    text(folder / "IMG_1.HEIC")
    with pytest.warns(UserWarning, match=r"IMG_1\.HEIC \(no image that Pillow can read\)"):
        from_folder(folder, 8, root=root)


def test_from_folder_reads_names_that_are_no_unicode_and_can_print_them(folder, root):
    write(folder, *numbered(3))
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "000.png").read_bytes())
    text(folder / os.fsdecode(b"\xfe\n.png"))
    with pytest.warns(UserWarning, match=r"^1 of 5 .*fe") as caught:
        assert len(everything(from_folder(folder, 8, root=root))[0]) == 4
    assert str(caught[0].message).encode().count(b"\n") == 0


# Folders


def test_from_folder_takes_sub_folders_for_classes_and_numbers_them_as_torchvision_does(folder, root):
    for k, name in enumerate(("zebra", "ant", "bee/small")):
        write(folder, *numbered(6, f"{name}/"), array=np.full((5, 5, 3), 10 * k, np.uint8))
    d = from_folder(folder, 5, root=root)
    assert d.class_names == ("ant", "bee", "zebra") == tuple(datasets.ImageFolder(folder).classes)
    x, y = everything(d)
    assert [x[y == k].unique().tolist() for k in range(3)] == [[10], [20], [0]]


def test_from_folder_keeps_the_number_of_a_class_whose_images_are_all_broken(folder, root):
    write(folder, *numbered(3, "c/"), *numbered(3, "a/"))
    (folder / "b").mkdir()
    text(folder / "b" / "bad.png")
    with pytest.warns(UserWarning, match=r"b/bad\.png"):
        d = from_folder(folder, 8, root=root)
    assert d.class_names == ("a", "b", "c")
    assert everything(d)[1].bincount().tolist() == [3, 0, 3]


def test_from_folder_takes_no_folder_without_images_for_a_class(folder, root):
    write(folder, *numbered(3, "a/"), *numbered(3, "b/"))
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    text(folder / "texts" / "notes.txt")
    assert from_folder(folder, 8, root=root).class_names == ("a", "b")


def test_from_folder_passes_through_a_folder_around_everything(folder, root):
    write(folder, *numbered(3, "archive/images/cat/"), *numbered(3, "archive/images/dog/"))
    assert from_folder(folder, 8, root=root).class_names == ("cat", "dog")


def test_from_folder_takes_images_beside_sub_folders_without_classes(folder, root):
    write(folder, *numbered(3), *numbered(4, "summer/"))
    with pytest.warns(UserWarning, match="beside sub-folders.*without classes"):
        d = from_folder(folder, 8, root=root)
    assert (d.class_names, len(everything(d)[0])) == ((), 7)
    assert not everything(d)[1].any()


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val", "test"), ("training", "validation")])
def test_from_folder_does_not_take_splits_for_classes(names, folder, root):
    for name in names:
        write(folder, *numbered(2, f"{name}/cat/"))
    with refused(ValueError, *names, "splits"):
        from_folder(folder, 8, root=root)


def test_from_folder_follows_links_to_folders_but_never_in_circles_or_twice(folder, root, tmp_path):
    write(tmp_path / "elsewhere", *numbered(4))
    write(folder, *numbered(3, "a/"))
    for name, target in (("b", tmp_path / "elsewhere"), ("again", tmp_path / "elsewhere"), ("a/up", folder)):
        (folder / name).symlink_to(target)
    (folder / "above").symlink_to(tmp_path)
    (folder / "inside").symlink_to(folder / "a")
    (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder / "circle")
    d = from_folder(folder, 8, root=root)
    assert len(everything(d)[0]) == 7
    assert d.class_names == ("a", "again")  # the first of the two names of one folder


def test_from_folder_names_a_folder_that_may_not_be_read(folder, root, monkeypatch):
    write(folder, *numbered(3))
    walk = os.walk

    def partly(top, *, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", f"{folder}/private"))
        return walk(top, onerror=onerror, followlinks=followlinks)

    monkeypatch.setattr(os, "walk", partly)
    with pytest.warns(UserWarning, match="private was skipped: Permission denied"):
        from_folder(folder, 8, root=root)


REFUSED = {
    "a missing folder": (
        lambda f: from_folder(f / "absent", 8),
        FileNotFoundError,
        ["path", "absent", "does not exist"],
    ),
    "a file": (lambda f: from_folder(f / "000.png", 8), ValueError, ["path", "000.png", "folder"]),
    "an archive": (lambda f: from_folder(f / "all.zip", 8), ValueError, ["path", "all.zip", "unpack"]),
    "an empty folder": (lambda f: from_folder(f / "empty", 8), ValueError, ["empty", "no image"]),
    "a folder of texts": (lambda f: from_folder(f / "texts", 8), ValueError, ["texts", "no image", "1 other"]),
    "one image": (lambda f: from_folder(f / "one", 8), ValueError, ["one", "two images", "got 1"]),
    "one image and a broken one": (lambda f: from_folder(f / "half", 8), ValueError, ["two", "got 1", "bad.png ("]),
    "no path": (lambda f: from_folder(None, 8), TypeError, ["path", "None"]),
    "a number for a path": (lambda f: from_folder(7, 8), TypeError, ["path", "7"]),
    "no size": (lambda f: from_folder(f, 0), ValueError, ["size", "positive integer", "0"]),
    "half a size": (lambda f: from_folder(f, 8.5), ValueError, ["size", "8.5"]),
    "two sizes": (lambda f: from_folder(f, (8, 8)), ValueError, ["size", "(8, 8)"]),
    "a size of True": (lambda f: from_folder(f, True), ValueError, ["size", "True"]),
    "a size for no memory": (lambda f: from_folder(f, 10**7), ValueError, ["GB", "smaller size"]),
    "grey in words": (lambda f: from_folder(f, 8, grey="no"), TypeError, ["grey", "'no'"]),
    "no test image": (lambda f: from_folder(f, 8, test_fraction=0.0), ValueError, ["test_fraction", "0.0"]),
    "no training image": (lambda f: from_folder(f, 8, test_fraction=1), ValueError, ["test_fraction", "1"]),
    "per cent": (lambda f: from_folder(f, 8, test_fraction=20), ValueError, ["test_fraction", "20"]),
    "a fraction that is none": (lambda f: from_folder(f, 8, test_fraction=float("nan")), ValueError, ["nan"]),
    "a fraction in words": (lambda f: from_folder(f, 8, test_fraction="0.2"), ValueError, ["'0.2'"]),
    "a negative seed": (lambda f: from_folder(f, 8, seed=-1), ValueError, ["seed", "-1"]),
    "a name without a size": (lambda f: data.load(f"folder:{f}"), ValueError, ["size", "folder:"]),
    "a name with grey in words": (lambda f: data.load(f"folder:{f}", size=8, grey="no"), TypeError, ["grey", "'no'"]),
    "a path for a name": (lambda f: data.load(f), ValueError, ["unknown data set", "folder:PATH"]),
    "a name without a path": (lambda f: data.load("folder:", size=8), ValueError, ["path", "empty"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_from_folder_refuses_in_one_sentence_and_writes_nothing(case, folder, monkeypatch, tmp_path):
    write(folder, *numbered(4))
    write(folder, "one/a.png", "half/a.png")
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    for name in ("all.zip", "texts/notes.txt", "half/bad.png"):
        text(folder / name)
    monkeypatch.setenv("VAE_CORE_DATA", str(tmp_path / "data"))
    action, kind, words = REFUSED[case]
    with warnings.catch_warnings(), refused(kind, *words):
        warnings.filterwarnings("ignore", ".* holds images beside")
        action(folder)
    assert not list(tmp_path.rglob("*.npz"))


def test_from_folder_refuses_a_root_that_cannot_be_written_before_it_reads_any_image(folder, tmp_path, monkeypatch):
    write(folder, *numbered(4))
    monkeypatch.setattr(data, "read_folder", lambda *_: pytest.fail("read before it looked"))
    (tmp_path / "file").write_text("no folder")
    with refused(OSError, tmp_path / "file", "VAE_CORE_DATA"):
        from_folder(folder, 8, root=tmp_path / "file" / "data")


# The split


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True), st.integers(0, 2**32 - 1), st.randoms())
def test_places_depend_on_a_name_and_the_seed_alone(names, seed, rng):
    mixed = rng.sample(names, len(names))
    alone = {name: places([name], seed)[0] for name in names}
    assert places(mixed, seed).tolist() == [alone[name] for name in mixed]
    assert all(0 <= place < 1 for place in alone.values())


def test_places_are_uniform_and_other_seeds_give_others():
    """Each of ten equal parts of [0, 1) holds a tenth of 10,000 names, within six standard errors."""
    names = [f"class/{k}.png" for k in range(10_000)]
    first, second = places(names, 0), places(names, 1)
    counts = np.histogram(first, 10, (0, 1))[0]
    assert (np.abs(counts - 1000) < 6 * (1000 * 0.9) ** 0.5).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / 100


def test_places_do_not_change_between_versions():
    """Other numbers would put training images into the test sets of people who trained with this version.

    From `printf 0/a.png | sha256sum`: c63a61ad... is 0.7743 of 2^256.
    """
    assert places(["a.png", "b/c.jpg"], 0) == pytest.approx([0.7743283317601168, 0.9196595142301041], abs=1e-15)


def splits(d: data.Dataset) -> dict[bytes, bool]:
    return {x.numpy().tobytes(): test for xs, test in ((d.x_train, False), (d.x_test, True)) for x in xs}


def test_from_folder_keeps_a_file_in_its_split_when_others_come_and_go(folder, root):
    write(folder, *numbered(30))
    before = splits(from_folder(folder, 8, test_fraction=0.4, root=root))
    write(folder, *(f"later{k}.png" for k in range(20)))
    (folder / "003.png").unlink()
    after = splits(from_folder(folder, 8, test_fraction=0.4, root=root))
    assert len(after) == 49
    assert len(before.keys() & after.keys()) == 29
    assert all(after[x] == before[x] for x in before.keys() & after.keys())


@pytest.mark.parametrize(("test_fraction", "sizes"), [(1e-12, (4, 1)), (1 - 1e-12, (1, 4))])
def test_from_folder_leaves_neither_part_empty(test_fraction, sizes, folder, root):
    write(folder, *numbered(5))
    d = from_folder(folder, 8, test_fraction=test_fraction, root=root)
    assert (len(d.x_train), len(d.x_test)) == sizes


def test_from_folder_puts_images_of_all_classes_first(folder, root):
    for name in "abc":
        write(folder, *numbered(30, f"{name}/"))
    assert set(from_folder(folder, 4, root=root).y_train[:15].tolist()) == {0, 1, 2}


# The cache


def test_from_folder_reads_one_uncompressed_npz_when_called_again(folder, root, monkeypatch):
    write(folder, *numbered(9, "a/"), *numbered(9, "b/"))
    first = from_folder(folder, 8, root=root)
    (cache,) = root.iterdir()
    assert cache.name.startswith("folder-photos-")
    assert cache.suffix == ".npz"
    assert cache.stat().st_size >= 18 * 8 * 8 * 3
    monkeypatch.setattr(folders, "read_image", lambda *_: pytest.fail("read again"))
    again = from_folder(str(folder), np.int64(8), root=root)
    assert again.sha256 == first.sha256
    assert again.class_names == first.class_names == ("a", "b")
    assert data.load(first.name, root, size=8).sha256 == first.sha256


CHANGES = {
    "one more": lambda f: write(f, "new.png"),
    "one less": lambda f: (f / "000.png").unlink(),
    "another name": lambda f: (f / "000.png").rename(f / "renamed.png"),
    "another image": lambda f: write(f, "000.png", array=noise(30, 30)),
    "a touch": lambda f: os.utime(f / "000.png", ns=(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_from_folder_makes_a_new_cache_of_a_changed_folder(change, folder, root):
    write(folder, *numbered(9))
    from_folder(folder, 8, root=root)
    CHANGES[change](folder)
    from_folder(folder, 8, root=root)
    assert len(list(root.iterdir())) == 2


def test_from_folder_makes_another_cache_for_other_settings(folder, root):
    write(folder, *numbered(9))
    settings = [dict(size=8), dict(size=9), dict(grey=True), dict(test_fraction=0.3), dict(seed=1)]
    for changed in settings:
        from_folder(folder, **dict(size=8, root=root) | changed)
    assert len(list(root.iterdir())) == len(settings)


@pytest.mark.parametrize("content", [b"", b"PK nothing"])
def test_from_folder_refuses_a_damaged_cache_by_name(content, folder, root):
    write(folder, *numbered(4))
    from_folder(folder, 8, root=root)
    (cache,) = root.iterdir()
    cache.write_bytes(content)
    with refused(ValueError, cache, "delete"):
        from_folder(folder, 8, root=root)


def test_from_folder_leaves_no_cache_after_ctrl_c(folder, root, monkeypatch):
    write(folder, *numbered(4))

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        from_folder(folder, 8, root=root)
    assert list(root.iterdir()) == []


def test_load_finds_the_home_folder(folder, root, monkeypatch):
    write(folder, *numbered(4))
    monkeypatch.setenv("HOME", str(folder.parent))
    assert data.load("folder:~/photos", root, size=8).name == "folder:~/photos"


@pytest.mark.parametrize(("n", "shown"), [(299, False), (300, True)])
def test_from_folder_draws_a_bar_for_many_images_unless_tqdm_is_disabled(n, shown, folder, root, monkeypatch, capsys):
    write(folder, *numbered(n), array=noise(4, 4))
    for disabled in ("1", "0"):
        monkeypatch.setenv("TQDM_DISABLE", disabled)
        from_folder(folder, 4, seed=int(disabled), root=root)
        assert ("reading" in capsys.readouterr().err) == (shown and disabled == "0")


# Named data sets beside it


def test_load_gives_the_named_sets_class_names():
    assert data.load("digits").class_names == tuple("0123456789")
    assert data.CLASS_NAMES.keys() == set(data.NAMES)
    assert all(len(set(names)) == 10 for names in data.CLASS_NAMES.values())
    assert data.CLASS_NAMES["fashion-mnist"] == tuple(datasets.FashionMNIST.classes)


def test_sha256_of_the_digits_is_the_recorded_one():
    """As it stands in the committed records, `data_sha256`."""
    assert data.load("digits").sha256 == "bc4f79a1fde67d23b2eca489c5db92e047f83cae469530ffdf63e30c70835119"


@pytest.mark.parametrize("asked", [dict(size=28), dict(grey=False), dict(size=8, grey=False)])
def test_load_refuses_a_named_set_of_another_size(asked):
    with refused(ValueError, "digits", "(1, 8, 8)"):
        data.load("digits", **asked)


def test_load_takes_the_size_that_a_named_set_has():
    assert data.load("digits", size=8, grey=True).image_shape == (1, 8, 8)


def test_from_folder_takes_any_bytes_for_an_image_or_skips_them(folder, root):
    """Files of random bytes behind the first bytes of each format: skipped, whatever Pillow's decoders make of them."""
    write(folder, *numbered(2))
    rng = random.Random(0)
    heads = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"II*\x00",
        b"BM",
        b"P5 ",
    ]
    for k in range(100):
        (folder / f"bad{k}.png").write_bytes(heads[k % len(heads)] + rng.randbytes(rng.randrange(200)))
    with pytest.warns(UserWarning, match="image files were skipped") as caught:
        d = from_folder(folder, 8, root=root)
    assert "\n" not in str(caught[0].message)
    assert len(everything(d)[0]) >= 2
