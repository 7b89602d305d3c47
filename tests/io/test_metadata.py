"What a file holds beside its pixels survives, as independent readers see it."

import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from photos import FORMATS, GRADIENT, NOTE, XMP, camera_exif, photo, seen, store
from PIL import Image, ImageOps

from agri_cae.config import ImageError
from agri_cae.io import images
from agri_cae.io.formats import Meta
from agri_cae.io.images import Picture, inspect_image, provenance_of, read_image, sample, upright, write_image
from agri_cae.io.metadata import tags_of
from agri_cae.io.tags import Tag, Tags, number_entry, values
from agri_cae.io.webp import WebpStyle

RASTERS = Path(__file__).parents[3] / "shared" / "data" / "rasters"


@pytest.mark.parametrize("format,orientation,order", [(f, o, "<>"[o % 2]) for f in FORMATS for o in range(1, 9)])
def test_orientation_and_tags_kept(tmp_path, format, orientation, order):
    path, out = photo(tmp_path, format, orientation, order), tmp_path / f"out{FORMATS[format]}"
    before, stored = seen(path), np.asarray(store(GRADIENT, orientation))
    assert "Orientation" in "".join(before) and before["Image Make"] == "DJI"
    facts, (h, w) = inspect_image(path), stored.shape[:2]
    assert dataclasses.replace(facts, width=w, height=h, orientation=orientation, gps=True, exif=True) == facts
    picture = read_image(path)
    assert np.abs(picture.data.astype(int) - stored).max() <= (20 if format == "jpeg" else 0)
    assert np.abs(upright(picture).data.astype(int) - GRADIENT).max() <= (20 if format == "jpeg" else 0)
    write_image(picture.with_data(picture.data.copy()), out, provenance="agri_cae 0.1.0 fast strength=1")
    after = seen(out)
    assert after["Image Tag 0x000B"] == "agri_cae 0.1.0 fast strength=1"
    moved = {"Image ExifOffset", "Image GPSInfo", "EXIF InteroperabilityOffset", "Image Tag 0x000B"}
    groups = "GPS ", "EXIF ", "Image Ma", "Image Mo", "Image Da", "Image Or", "Interop"
    kept = {k for k in before if k.startswith(groups)} - moved
    assert len(kept) > 10 and {k: after.get(k) for k in kept} == {k: before[k] for k in kept}
    assert not any(k.startswith("Thumbnail") or k == "JPEGThumbnail" for k in after)
    again = read_image(out)
    assert (
        again.data.shape == stored.shape
        and NOTE in (again.meta.exif or tags_of(again.meta)[Tag.ExifIFD][Tag.MakerNote].raw)
        and provenance_of(again) == "agri_cae 0.1.0 fast strength=1"
    )
    assert np.asarray(ImageOps.exif_transpose(Image.open(out))).shape == GRADIENT.shape


@pytest.mark.parametrize("format,orientation", [(f, o) for f in FORMATS for o in (3, 6)])
def test_upright_is_written_once(tmp_path, format, orientation):
    "A picture that was turned says so: nobody turns it a second time"
    picture, out = upright(read_image(photo(tmp_path, format, orientation))), tmp_path / f"out{FORMATS[format]}"
    write_image(picture, out)
    assert seen(out)["Image Orientation"] == "Horizontal (normal)"
    if format != "tiff":
        assert (seen(out)["EXIF ExifImageWidth"], seen(out)["EXIF ExifImageLength"]) == ("80", "48")
    assert upright(read_image(out)).data.shape == read_image(out).data.shape == GRADIENT.shape
    alpha = np.asarray(store(GRADIENT, orientation))[..., 0]
    clear = dataclasses.replace(read_image(photo(tmp_path, format, orientation)), alpha=alpha)
    assert np.array_equal(upright(clear).alpha, GRADIENT[..., 0])


def test_maker_note_stays_in_place(tmp_path):
    path, out = photo(tmp_path, "jpeg", 6), tmp_path / "out.jpg"
    write_image(read_image(path), out, provenance="x" * 40)
    before, after = (p.read_bytes() for p in (path, out))
    assert before.index(NOTE) - before.index(b"Exif\0\0") == after.index(NOTE) - after.index(b"Exif\0\0")


@pytest.mark.parametrize("source,target", list(itertools.product(FORMATS, FORMATS)))
def test_metadata_across_formats(tmp_path, source, target):
    icc = images.read_image(sample("field_camera")).meta.icc
    meta = Meta(exif=camera_exif(1, thumbnail=False), xmp=XMP.replace(b"6", b"1"), icc=icc)
    picture = Picture(GRADIENT, format=source, meta=meta)
    write_image(picture, tmp_path / f"a{FORMATS[source]}")
    write_image(read_image(tmp_path / f"a{FORMATS[source]}"), tmp_path / f"b{FORMATS[target]}")
    b = read_image(tmp_path / f"b{FORMATS[target]}")
    assert b.format == target and b.meta.icc == icc and b.meta.xmp == meta.xmp
    tags = seen(tmp_path / f"b{FORMATS[target]}")
    assert (tags["Image Make"], tags["EXIF LensModel"], tags["GPS GPSLatitude"]) == (
        "DJI",
        "24.0 mm f/2.8",
        "[48, 8, 617/50]",
    )
    with Image.open(tmp_path / f"b{FORMATS[target]}") as im:
        assert im.info.get("icc_profile") == icc  # another reader finds them too
    assert np.abs(b.data.astype(int) - GRADIENT).max() < 40


def test_xmp_orientation(tmp_path):
    im = store(GRADIENT, 6)
    im.save(tmp_path / "a.jpg", quality=98, subsampling=0, xmp=XMP)
    p = read_image(tmp_path / "a.jpg")
    assert p.data.shape == (80, 48, 3) and p.meta.xmp == XMP
    q = upright(p)
    assert q.data.shape == GRADIENT.shape and q.meta.xmp == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize(
    "format,dtype,c,alpha",
    [("png", t, c, a) for t in ("u1", "u2") for c in (1, 3) for a in (False, True)]
    + [("tiff", t, c, a) for t in ("u1", "u2", "f4") for c in (1, 3) for a in (False, True)]
    + [("webp", "u1", 3, False), ("webp", "u1", 3, True)],
)
def test_lossless(tmp_path, format, dtype, c, alpha):
    rng = np.random.default_rng(1)
    a = rng.random((37, 53, c + alpha))
    if alpha: a[::2, :, c] = 1   # half of it is full: what is tagged as alpha, but looks like a band, is one
    a = (a if dtype == "f4" else a * np.iinfo(dtype).max).astype(dtype)
    p = Picture(
        a[..., :c],
        a[..., c] if alpha else None,
        format,
        Meta(style=WebpStyle(lossless=True)) if format == "webp" else Meta(),
    )
    f = io.BytesIO()
    write_image(p, f)
    q = read_image(f.getvalue())
    assert (
        q.data.dtype == a.dtype
        and np.array_equal(q.data, p.data)
        and (np.array_equal(q.alpha, p.alpha) if alpha else q.alpha is None)
    )
    info = inspect_image(f.getvalue())
    assert (info.format, info.width, info.height, info.bands, info.alpha, info.dtype) == (
        format,
        53,
        37,
        c,
        alpha,
        a.dtype.name,
    )
    if format == "tiff" and dtype != "f4":
        assert np.array_equal(tifffile.imread(io.BytesIO(f.getvalue())).reshape(a.shape), a)
    if format == "png" and dtype == "u1":
        assert np.array_equal(np.asarray(Image.open(f)).reshape(a.shape), a)


def test_jpeg_keeps_its_style(tmp_path):
    src = sample("field_camera")
    p = read_image(src)
    write_image(p, tmp_path / "a.jpg")
    with Image.open(src) as old, Image.open(tmp_path / "a.jpg") as new:
        assert (
            old.quantization == new.quantization
            and old.layer == new.layer
            and old.info["dpi"] == new.info["dpi"]
            and {k: v for k, v in old.info["photoshop"].items() if k != 0x040C} == new.info["photoshop"]  # no thumbnail
            and old.info["icc_profile"] == new.info["icc_profile"]
        )
    for sampling, progressive, mode in itertools.product((0, 1, 2), (False, True), ("RGB", "L")):
        Image.fromarray(GRADIENT).convert(mode).save(
            tmp_path / "b.jpg",
            quality=83,
            subsampling=sampling,
            progressive=progressive,
            dpi=(300, 300),
            comment="plot 7",
        )
        write_image(read_image(tmp_path / "b.jpg"), tmp_path / "c.jpg", overwrite=True)
        with Image.open(tmp_path / "b.jpg") as old, Image.open(tmp_path / "c.jpg") as new:
            assert (
                old.quantization,
                old.layer if mode == "RGB" else 0,
                old.info.get("progressive"),
                old.info["dpi"],
                old.info["comment"],
                old.mode,
            ) == (
                new.quantization,
                new.layer if mode == "RGB" else 0,
                new.info.get("progressive"),
                new.info["dpi"],
                new.info["comment"],
                new.mode,
            )


@pytest.mark.parametrize(
    "path", [sample("airborne"), sample("satellite"), *sorted(RASTERS.glob("*.tif"))], ids=lambda p: p.name
)
def test_real_rasters_keep_every_tag(tmp_path, path):
    if inspect_image(path).problem:
        with pytest.raises(ImageError, match="bands"):
            read_image(path)
        return
    p = read_image(path)
    write_image(p, tmp_path / "out.tif", provenance="test")
    q = read_image(tmp_path / "out.tif")
    assert np.array_equal(p.data, q.data) and np.array_equal(p.alpha, q.alpha)
    with tifffile.TiffFile(path) as t, tifffile.TiffFile(tmp_path / "out.tif") as u:
        old, new = t.pages[0].tags, u.pages[0].tags
        places = {273, 279, 42112}  # of GDAL's metadata the statistics go: test_tiff_pages.py
        assert {g.code: g.value for g in old if g.code not in places} == {
            g.code: g.value for g in new if g.code not in places | {0x000B}
        }
        assert u.pages[0].geotiff_tags == t.pages[0].geotiff_tags if t.pages[0].is_geotiff else True


def test_shared_rasters_present():
    if not RASTERS.is_dir():
        pytest.skip("../shared/data/rasters is absent: only the samples in the package were tried")
    assert len(list(RASTERS.glob("*.tif"))) == 4


def test_georeferenced_is_not_turned(tmp_path):
    f = io.BytesIO()
    write_image(read_image(sample("airborne")), f)
    data = bytearray(f.getvalue())
    p = read_image(bytes(data))
    tags = p.meta.tags
    turned = Tags(tags.order, tags | {Tag.Orientation: number_entry(3, 6, order=tags.order)})
    p = dataclasses.replace(p, meta=dataclasses.replace(p.meta, tags=turned))
    for note in (None, "denoised"):
        f = io.BytesIO()
        write_image(p, f, provenance=note)
        q = read_image(f.getvalue())
        assert np.array_equal(p.data, q.data) and values(q.meta.tags, Tag.Orientation) == (6,)
        assert upright(q) is q
