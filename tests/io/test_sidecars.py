"""Files beside a picture: which belong to it, where they go, what they say, and that nothing is lost or stale."""

import io
import itertools
import math
import os
import random
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from agri_cae.config import ImageError, OutputError
from agri_cae.io import sidecars
from agri_cae.io.formats import Meta
from agri_cae.io.images import Picture, write_image
from agri_cae.io.overviews import shrink
from agri_cae.io.sidecars import (
    carried,
    find_sidecars,
    has_world_file,
    mask_beside,
    nodata_beside,
    plan_sidecars,
    read_xml,
    remake_overviews,
    sidecar_path,
    without_statistics,
)
from agri_cae.io.tags import Tags
from agri_cae.io.tiff import encode_tiff, new_style
from agri_cae.io.tiffheader import scan_tiff
from agri_cae.io.tiffpixels import decode_tiff

PAM = """<PAMDataset>
  <SRS dataAxisToSRSAxisMapping="1,2">EPSG:32721</SRS>
  <!-- a note -->
  <PAMRasterBand band="1"><Description>NIR &lt;840&gt;</Description><Scale>0.5</Scale><Offset>-3</Offset>
    <Minimum>4</Minimum><Maximum>9</Maximum><Mean>6</Mean><StandardDeviation>2</StandardDeviation>
    <Histograms><HistItem><HistMin>-0.5</HistMin><HistCounts>9|1</HistCounts></HistItem></Histograms>
    <Metadata><MDI key="STATISTICS_MEAN">6</MDI><MDI key="FLIGHT">7 &amp; 8</MDI></Metadata>
    <Metadata domain="IMAGE_STRUCTURE"><MDI key="NBITS">8</MDI></Metadata></PAMRasterBand>
</PAMDataset>
"""
ESRI = (
    '\ufeff<?xml version="1.0" encoding="UTF-8"?>\r\n<PAMDataset><Metadata domain="Esri" format="xml">'
    '<GeodataXform xmlns:typens="http://www.esri.com/schemas/ArcGIS/10.8" xmlns:xsi="http://www.w3.org/2001/'
    'XMLSchema-instance" xsi:type="typens:IdentityXform"/></Metadata><PAMRasterBand band="1"><Metadata>'
    '<MDI key="STATISTICS_MEAN">6</MDI></Metadata></PAMRasterBand></PAMDataset>'
)


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def made(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(f"this is {name}")
    return folder


@pytest.mark.parametrize(
    "picture, beside, others",
    [
        (
            "a.tif",
            ["a.tfw", "a.tifw", "a.wld", "a.prj", "a.tif.aux.xml", "a.tif.ovr", "a.tif.msk", "a.xmp", "a.rpb"],
            ["a.jgw", "a2.tfw", "ab.prj", "a", "a.txt.bak", "b.tfw", "flight.MRK", "a.tif.zip"],
        ),
        ("A.TIFF", ["A.TFW", "A.TIFFW", "A.TIFF.AUX.XML", "A_RPC.TXT"], ["A.JGW"]),
        ("DJI_0042.JPG", ["DJI_0042.JGW", "DJI_0042.jpg.xmp", "DJI_0042.MRK", "DJI_0042.txt"], ["DJI_00421.txt"]),
        ("plant.a.png", ["plant.a.pgw", "plant.a.png.aux.xml"], ["plant.pgw", "plant.a.tfw"]),
        ("ü.webp", ["Ü.wpw", "ü.webp.msk"], ["u.wpw"]),
    ],
)
def test_files_of_the_same_name_belong_to_a_picture(tmp_path, picture, beside, others):
    made(tmp_path, picture, *beside, *others)
    (tmp_path / f"{picture}.txt").mkdir()  # a folder is no sidecar
    assert {s.path.name for s in find_sidecars(tmp_path / picture)} == set(beside)


def test_the_file_that_is_spelled_like_the_picture_is_taken(tmp_path):
    made(tmp_path, "a.tif", "A.tif", "a.tfw", "A.tfw", "A.prj")
    if len(files(tmp_path)) < 5:
        pytest.skip("this file system does not tell capital letters")
    assert [s.path.name for s in find_sidecars(tmp_path / "a.tif")] == ["A.prj", "a.tfw"]


@pytest.mark.parametrize(
    "beside, src, dst, expected",
    [
        ("a.tfw", "a.tif", "b.tif", "b.tfw"),
        ("a.TFW", "a.tif", "b.TIFF", "b.TFW"),
        ("a.tfw", "a.tif", "b.jpg", "b.jgw"),
        ("a.JGW", "a.JPEG", "b.png", "b.PGW"),
        ("a.wld", "a.tif", "b.png", "b.wld"),
        ("a.tif.aux.xml", "a.tif", "b.png", "b.png.aux.xml"),
        ("a_RPC.TXT", "a.tif", "b.c.tif", "b.c_RPC.TXT"),
        ("a.tif.OVR", "a.tif", "b", "b.OVR"),
        ("a.tfw", "a.tif", "b", "b.tfw"),
    ],
)
def test_names_follow_the_picture(tmp_path, beside, src, dst, expected):
    made(tmp_path, src, beside)
    (sidecar,) = find_sidecars(tmp_path / src)
    assert sidecar_path(sidecar, tmp_path / src, tmp_path / "out" / dst) == tmp_path / "out" / expected


# ---- XML
def test_statistics_go_and_every_other_byte_stays():
    left = without_statistics(PAM.encode()).decode()
    for gone in ("STATISTICS", "Hist", "Minimum", "Maximum", "Mean>", "StandardDeviation"):
        assert gone not in left
    lines = [o for o in PAM.splitlines(True) if not any(w in o for w in ("STATISTICS", "<Hist", "<Minimum"))]
    assert all(o.strip() in left for o in lines)
    assert '<Metadata><MDI key="FLIGHT">7 &amp; 8</MDI></Metadata>' in left
    assert without_statistics(left.encode()).decode() == left


def test_namespaces_and_marks_survive():
    left = without_statistics(ESRI.encode()).decode()
    assert left == ESRI.replace('<MDI key="STATISTICS_MEAN">6</MDI>', "")


@pytest.mark.parametrize(
    "text, says",
    [
        (b"<PAMDataset><SRS>", "no XML"),
        (b"", "no XML"),
        (b"\xff\xfe\x00", "no XML"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/hostname"><a/>', "document type"),
        (b'<!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>', "document type"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>'.encode("utf-16"), "document type"),
        ("<PAMRasterBand><Mean>1</Mean></PAMRasterBand>".encode("utf-16"), "not in UTF-8"),
    ],
)
def test_wrong_xml_is_named_and_carried_as_it_is(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        without_statistics(text)
    src, out = made(tmp_path / "in", "a.tif"), made(tmp_path / "out")
    (src / "a.tif.aux.xml").write_bytes(text)
    plan = plan_sidecars(src / "a.tif", out / "b.tif")
    assert plan.files == {out / "b.tif.aux.xml": text} and len(plan.warnings) == 1 and says in plan.warnings[0]
    assert nodata_beside(src / "a.tif", 1) is None and not has_world_file(src / "a.tif")


def test_long_xml_is_not_read(monkeypatch):
    monkeypatch.setattr(sidecars, "_LONGEST", 100)
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        read_xml(PAM.encode())


def test_deep_xml_does_no_harm():
    deep = b"<a>" * 50_000 + b"</a>" * 50_000
    assert without_statistics(deep) == deep


def tree(draw, depth=3):
    "A random element of a .aux.xml, statistics and others"
    names = ["PAMDataset", "PAMRasterBand", "Metadata", "MDI", "Histograms", "Mean", "Description", "a:b", "é"]
    keys = ["STATISTICS_MEAN", "OVERVIEW_FILE", "NAME", "x>y"]
    e = ET.Element(draw.choice(names), {"key": draw.choice(keys), "xmlns:a": "urn:a"})
    e.text, e.tail = (draw.choice(["", "\n ", "1 < 2 & 3", "ü ]]"]) for _ in range(2))
    e.extend(tree(draw, depth - 1) for _ in range(draw.randint(0, 3) if depth else 0))
    return e


def kept(e, parent=""):
    "The same without what tells of pixels, as nested tuples without space between elements"
    stale = e.tag == "MDI" and e.get("key").startswith(("STATISTICS_", "OVERVIEW_FILE"))
    stale |= parent == "PAMRasterBand" and e.tag in ("Histograms", "Mean")
    text = (e.text or "").strip()
    return None if stale else (e.tag, e.get("key"), text, [(kept(c, e.tag), (c.tail or "").strip()) for c in e])


def simple(node):
    "Nested tuples, with texts around a hole joined"
    tag, key, text, children = node
    out = [text]
    for child, tail in children:
        out += [*([] if child is None else [simple(child)]), tail]
    joined = [out[0]]
    for o in out[1:]:
        if isinstance(o, str) and isinstance(joined[-1], str):
            joined[-1] += o
        else:
            joined.append(o)
    return tag, key, joined


@pytest.mark.parametrize("seed", range(60))
def test_any_document_loses_its_statistics_and_nothing_else(seed):
    root = tree(random.Random(seed))
    root.tag, root.tail = "PAMDataset", ""
    data = ET.tostring(root, "utf-8").replace(b" xmlns:a", b' n="1" xmlns:a', seed % 2)
    left = without_statistics(data)
    assert simple(kept(read_xml(left))) == simple(kept(read_xml(data))) and without_statistics(left) == left
    assert not any("STATISTICS_" in e.get("key", "") for e in read_xml(left).iter("MDI"))


# ---- what they say
LOWEST, SEVEN = float(np.finfo(np.float32).min), "<NoDataValue>7</NoDataValue>"


def pam(bands):
    each = (f'<PAMRasterBand band="{n}">{o}</PAMRasterBand>' for n, o in bands)
    return f"<PAMDataset>{''.join(each)}</PAMDataset>"


@pytest.mark.parametrize(
    "bands, expected",
    [
        ([(1, "<NoDataValue>-9999</NoDataValue>")], (-9999.0, None, None)),
        ([(2, "<NoDataValue> 1e+20 </NoDataValue>"), (3, "<NoDataValue>nan</NoDataValue>")], (None, 1e20, np.nan)),
        ([(3, '<NoDataValue le_hex_equiv="000000E0FFFFEFC7">-3.4e38</NoDataValue>')], (None, None, LOWEST)),
        ([(1, "<NoDataValue>none</NoDataValue>"), (9, SEVEN), ("x", SEVEN), (0, SEVEN)], None),
        ([(1, '<NoDataValue le_hex_equiv="zz000000FFFFEFC7">5</NoDataValue>')], None),
        ([(1, "<Scale>2</Scale>")], None),
    ],
)
def test_nodata_of_each_band(tmp_path, bands, expected):
    made(tmp_path, "a.tif")
    (tmp_path / "a.tif.aux.xml").write_text(pam(bands))
    np.testing.assert_equal(nodata_beside(tmp_path / "a.tif", 3), expected)


@pytest.mark.parametrize(
    "beside, text, placed",
    [
        ("a.TFW", "", True),
        ("a.wld", "", True),
        ("a.prj", "", False),
        ("a_rpc.txt", "", True),
        ("a.tif.aux.xml", "<PAMDataset><GeoTransform>1,2,0,3,0,-2</GeoTransform></PAMDataset>", True),
        ("a.tif.aux.xml", "<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>", False),
        ("a.jgw", "", False),
    ],
)
def test_what_places_a_picture_on_a_map(tmp_path, beside, text, placed):
    made(tmp_path, "a.tif")
    (tmp_path / beside).write_text(text)
    assert has_world_file(tmp_path / "a.tif") is placed


@pytest.mark.parametrize("bands", [1, 4])
def test_a_mask_beside(tmp_path, bands):
    mask = np.random.default_rng(bands).choice(np.uint8([0, 1, 255]), (31, 47, bands))
    with open(tmp_path / "a.JPG.MSK", "wb") as f:
        encode_tiff(f, mask, Meta())
    assert np.array_equal(mask_beside(tmp_path / "a.jpg", (31, 47)), mask > 0)
    with pytest.raises(ImageError, match="47 x 31"):
        mask_beside(tmp_path / "a.jpg", (47, 31))
    whole = (tmp_path / "a.JPG.MSK").read_bytes()
    (tmp_path / "a.JPG.MSK").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"a\.JPG\.MSK"):
        mask_beside(tmp_path / "a.jpg", (31, 47))
    assert mask_beside(tmp_path / "b.jpg", (31, 47)) is None


# ---- overviews
@pytest.mark.parametrize(
    "planar, bands, dtype", [(1, 3, "uint8"), (2, 3, "uint16"), (1, 1, "float32"), (1, 4, "int16")]
)
def test_overviews_are_made_anew(planar, bands, dtype):
    rng = np.random.default_rng(0)
    a = (rng.random((90, 70, bands)) * 200).astype(dtype)
    valid = rng.random(a.shape) > 0.3
    a[~valid] = 7
    first = replace(new_style(a[:45, :35], bands, None), planar=planar, tile=(16, 16), subfile=1)
    second = replace(first, size=(18, 23), tags=Tags())
    old = io.BytesIO()
    encode_tiff(old, np.zeros_like(a[:45, :35]), Meta(style=replace(first, overviews=(second,))), bands)
    new = io.BytesIO(remake_overviews(old.getvalue(), a, valid=valid, nodata=(7,) * bands))
    style = scan_tiff(new)[1].style
    assert (style.subfile, style.planar, style.tile) == (1, planar, (16, 16)) and style.overviews[0].size == (18, 23)
    assert np.array_equal(decode_tiff(new, style), shrink(a, (35, 45), valid, 7)[0])
    for wrong in (a[..., :1].repeat(2, -1), a.astype("int32")):
        with pytest.raises(ValueError, match="another kind"):
            remake_overviews(old.getvalue(), wrong)
    for n in (9, 100):
        with pytest.raises(ValueError, match=r"header|directory"):
            remake_overviews(old.getvalue()[:n], a)


# ---- carrying
@pytest.fixture
def flight(tmp_path):
    src = made(tmp_path / "in", "a.tif", "a.tfw", "a.tif.ovr", "a.tif.msk", "a.txt", "a.rrd", "b.txt")
    (src / "a.tif.aux.xml").write_text(PAM)
    return src


def go(src, dst, overwrite=False, text="picture", **how):
    plan = plan_sidecars(src, dst, **how)
    with carried(plan, overwrite):
        if isinstance(text, Exception):
            raise text
        dst.write_text(text)
    return plan.warnings


def test_all_go_along_and_overviews_are_made_anew(flight, tmp_path):
    out, before = made(tmp_path / "out"), files(flight)
    said = go(flight / "a.tif", out / "b.tif", remake=lambda old: old.upper())
    assert files(out) == {
        "b.tif": b"picture",
        "b.tfw": b"this is a.tfw",
        "b.tif.msk": b"this is a.tif.msk",
        "b.txt": b"this is a.txt",
        "b.tif.ovr": b"THIS IS A.TIF.OVR",
        "b.tif.aux.xml": without_statistics(PAM.encode()),
    }
    assert len(said) == 1 and "a.rrd" in said[0] and files(flight) == before


@pytest.mark.parametrize("error", [None, ValueError("they are damaged"), ImageError("a", "is wrong")])
def test_overviews_that_cannot_be_made_are_dropped_with_a_warning(flight, tmp_path, error):
    def remake(old):
        raise error

    out = made(tmp_path / "out")
    said = go(flight / "a.tif", out / "b.tif", remake=error and remake)
    assert not list(out.glob("*.ovr")) and sum("a.tif.ovr" in o for o in said) == 1


def test_an_unchanged_picture_keeps_its_files_byte_for_byte(flight, tmp_path):
    out = made(tmp_path / "out")
    assert go(flight / "a.tif", out / "a.tif", changed=False) == ()
    assert {n: b for n, b in files(out).items() if n != "a.tif"} == {
        n: b for n, b in files(flight).items() if n not in ("a.tif", "b.txt")
    }


def test_in_place(flight):
    before = files(flight)
    go(flight / "a.tif", flight / "a.tif", overwrite=True)
    after = files(flight)
    assert set(before) - set(after) == {"a.tif.ovr", "a.rrd"}
    assert {n for n in after if after[n] != before[n]} == {"a.tif", "a.tif.aux.xml"}
    go(flight / "a.tif", flight / "a.tif", overwrite=True, changed=False)
    assert files(flight) == after


def test_in_place_with_new_overviews_through_a_link(flight, tmp_path):
    link = tmp_path / "in" / "link.tif"
    os.symlink("a.tif", link)
    go(flight / "a.tif", flight / "a.tif", overwrite=True, remake=lambda old: b"new")
    assert (flight / "a.tif.ovr").read_bytes() == b"new" and not (flight / "a.rrd").exists()
    assert link.is_symlink() and find_sidecars(link) == ()


def test_nothing_is_overwritten_unless_allowed(flight, tmp_path):
    out = made(tmp_path / "out", "b.txt", "c.tif.ovr")
    before = files(out)
    for name in ("b.tif", "c.tif"):
        with pytest.raises(OutputError, match=r"b\.txt: exists|c\.tif\.ovr: shows another"):
            go(flight / "a.tif", out / name)
    assert files(out) == before
    go(flight / "a.tif", out / "b.tif", overwrite=True)
    go(flight / "a.tif", out / "c.tif", overwrite=True)
    assert files(out)["b.txt"] == b"this is a.txt" and "c.tif.ovr" not in files(out)


def test_what_is_there_already_is_no_obstacle(flight, tmp_path):
    out = made(tmp_path / "out")
    (out / "a.txt").write_bytes((flight / "a.txt").read_bytes())
    go(flight / "a.tif", out / "a.tif")
    (flight / "a.jpg").write_text("its neighbour has the same notes")
    go(flight / "a.jpg", out / "a.jpg")
    assert files(out)["a.jpg"] == b"picture" and "a.jgw" not in files(out)


def test_facts_of_an_older_picture_lose_their_statistics(tmp_path):
    src, out = made(tmp_path / "in", "a.tif"), made(tmp_path / "out", "b.tif")
    (out / "b.tif.aux.xml").write_text(PAM)
    go(src / "a.tif", out / "b.tif", overwrite=True)
    assert files(out)["b.tif.aux.xml"] == without_statistics(PAM.encode())


def test_a_failure_leaves_all_as_it_was(flight, tmp_path):
    out, before = made(tmp_path / "out"), files(flight)
    for dst, error in itertools.product((out / "b.tif", flight / "a.tif"), (RuntimeError("x"), OutputError("b", "c"))):
        with pytest.raises(type(error)):
            go(flight / "a.tif", dst, overwrite=True, text=error)
    assert files(flight) == before and files(out) == {}


def test_streams_and_devices_have_no_sidecars(flight):
    for src, dst in ((b"bytes", flight / "c.tif"), (flight / "a.tif", "/dev/null"), (flight / "a.tif", None)):
        assert plan_sidecars(src, dst) == ({}, (), ())


# ---- together with the pixels, as map software sees them
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.filterwarnings("ignore")
def test_map_software_finds_the_new_picture_where_the_old_one_was(tmp_path, dtype):
    rasterio = pytest.importorskip("rasterio")
    src, out, rng = made(tmp_path / "in"), made(tmp_path / "out"), np.random.default_rng(0)
    a = (rng.random((40, 50, 1)) * 200 + 1).astype(dtype)
    write_image(Picture(a, format="tiff"), src / "a.tif")
    (src / "A.TFW").write_text("0.5\n0\n0\n-0.5\n700000.25\n6200000\n")
    (src / "a.tif.aux.xml").write_text(
        PAM.replace("</Metadata>\n    <Metadata", "</Metadata><NoDataValue>7</NoDataValue><Metadata")
    )
    with carried(plan_sidecars(src / "a.tif", out / "b.TIF")):
        write_image(Picture(a // 2 if dtype != "float32" else a / 2, format="tiff"), out / "b.TIF")
    assert {"b.TFW", "b.TIF.aux.xml"} < set(files(out))
    with rasterio.open(src / "a.tif") as old, rasterio.open(out / "b.TIF") as new:
        for what in ("crs", "transform", "descriptions", "scales", "offsets", "nodata"):
            assert getattr(old, what) == getattr(new, what), what
        assert old.crs.to_epsg() == 32721 and old.transform.a == 0.5 and old.nodata == 7
        assert nodata_beside(out / "b.TIF", 1) == new.nodatavals
        assert {**new.tags(1), "STATISTICS_MEAN": "6"} == old.tags(1)


@pytest.mark.filterwarnings("ignore")
def test_masks_that_map_software_wrote(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    a = np.full((3, 33, 70), 9, "uint8")
    mask = np.random.default_rng(0).choice(np.uint8([0, 255]), (33, 70))
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=70, height=33, count=3, dtype="uint8") as d,
    ):
        d.write(a)
        d.write_mask(mask)
    valid = mask_beside(tmp_path / "a.tif", (33, 70))
    assert np.array_equal(valid[..., 0], mask > 0)
    with rasterio.open(tmp_path / "a.tif") as d:
        assert (np.moveaxis(d.read_masks() > 0, 0, -1) == valid).all()


@pytest.mark.parametrize("dtype, bands", [("uint8", 3), ("float32", 1)])
@pytest.mark.filterwarnings("ignore")
def test_map_software_sees_new_overviews_beside(tmp_path, dtype, bands):
    rasterio = pytest.importorskip("rasterio")
    rng, path = np.random.default_rng(0), tmp_path / "a.tif"
    a = (rng.random((200, 150, bands)) * 250).astype(dtype)
    shape = dict(driver="GTiff", width=150, height=200, count=bands, dtype=dtype)
    with rasterio.open(path, "w", **shape) as d:
        d.write(np.moveaxis(a, -1, 0))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as d:
        d.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    ovr, new = tmp_path / "a.tif.ovr", (a * 0.7).astype(dtype)
    ovr.write_bytes(remake_overviews(ovr.read_bytes(), new))
    with rasterio.open(path) as d:
        assert d.overviews(1) == [2, 4, 8]
        for k, factor in enumerate((2, 4)):
            with rasterio.open(path, overview_level=k) as small:
                expected = new.reshape(200 // factor, factor, -1, factor, bands) if 150 % factor == 0 else None
                got = np.moveaxis(small.read(), 0, -1)
                assert got.shape[:2] == (math.ceil(200 / factor), math.ceil(150 / factor))
                if expected is not None:
                    assert abs(got - expected.astype(float).mean((1, 3))).max() <= 0.51
