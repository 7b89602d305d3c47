"What a folder run takes, names and leaves alone: endings, no ending, links, loops, formats that are not read."
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import call, picture, tree
from tiny_model import box_model

from agri_cae.config import ConfigError
from agri_cae.flights.folder import denoise_folder
from agri_cae.flights.jobs import plan
from agri_cae.io.folders import find_below, find_images
from agri_cae.io.formats import PICTURE_SUFFIXES
from agri_cae.io.images import Picture, write_image
from agri_cae.serve import Denoiser

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
JXL = b"\xff\x0a" + bytes(40)


@pytest.fixture(scope="module")
def model(tmp_path_factory): return str(box_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def flight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "flight/a.jpg")
    return tmp_path / "flight"


def copy(flight, *names):
    for name in names:
        (flight / name).parent.mkdir(parents=True, exist_ok=True)
        (flight / name).write_bytes((flight / "a.jpg").read_bytes())


def records(done): return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_ending_and_none(flight, model):
    names = ["b.JFIF", "c.jpe", "d.MPO", "e.Jpeg", "DJI_0001", "sub/IMG 2"]
    copy(flight, *names)
    picture(flight / "g.bmp")
    picture(flight / "h.PPM")
    os.replace(flight / "h.PPM", flight / "raster")
    others = {"notes.txt": b"Field 7", "README": b"P5 is a plot", "flight.log": b"BM", "empty": b"",
              "paper.pdf": b"%PDF", "a.jpg_original": b"\xff\xd8\xff", "clip.mp4": b"\0\0\0\x18ftypmp42"}
    for name, text in others.items():
        (flight / name).write_bytes(text)
    os.mkfifo(flight / "pipe")  # opening it would wait for ever
    done = call("denoise", "flight", "out", "--model", model)
    assert tree("out") == sorted(["a.jpg", "g.bmp", "raster", *names])
    assert "9 denoised, 0 skipped, 0 failed; 8 other files left alone" in done.stderr
    assert all((Path("out") / n).read_bytes()[:3] == b"\xff\xd8\xff" for n in names)


def test_what_is_not_read_is_named(flight, model):
    bad = {"b.HEIC": HEIC, "c.jxl": JXL, "d": HEIC, "e.avif": b"\0\0\0\x1cftypavif", "f.dng": b"II*\0",
           "g.psd": b"8BPS", "h.tif": b"II*\0", "i.webp": b"", "j.gif": b"GIF89a", "k.jp2": b"\0\0\0\x0cjP  \r\n\x87\n"}
    for name, data in bad.items(): (flight / name).write_bytes(data)
    done = call("denoise", "flight", "out", "--model", model, "--json", rc=1)
    status = {Path(r["source"]).name: r["status"] for r in records(done)}
    assert status == {"a.jpg": "done"} | dict.fromkeys(bad, "failed") and tree("out") == ["a.jpg"]
    lines = done.stderr.splitlines()
    assert all(sum(f"flight/{n}:" in line for line in lines) == 1 for n in bad) and "unexpected" not in done.stderr
    assert f"1 denoised, 0 skipped, {len(bad)} failed; 0 other" in done.stderr
    assert "heif-convert" in done.stderr and "djxl" in done.stderr
    for name in ("b.HEIC", "c.jxl", "d"):  # the same as single files
        assert name in call("denoise", flight / name, "x.png", "--model", model, rc=1).stderr


def test_links(flight, model):
    copy(flight.parent / "flight", "../disk/b.jpg", "../disk/deep/c.jpg", "sub/d.jpg")
    for name, to in (("other", "../disk"), ("deep", "../disk/deep"), ("loop", "."), ("up", ".."), ("again", "sub"),
                     ("gone.jpg", "nowhere.jpg"), ("gone", "nowhere"), ("round.jpg", "round.jpg"), ("e.jpg", "a.jpg")):
        (flight / name).symlink_to(to)
    done = call("denoise", "flight", "out", "--model", model, "--json", rc=1)
    failed = {r["source"]: r["error"] for r in records(done) if r["status"] == "failed"}
    assert set(failed) == {f"flight/{n}" for n in ("other", "deep", "up", "gone.jpg", "gone", "round.jpg")}
    assert "b.jpg" in failed["flight/other"] and "--follow-links" in failed["flight/other"]
    assert "link to a file that is not there" in failed["flight/gone.jpg"] and "circle" in failed["flight/round.jpg"]
    assert tree("out") == ["a.jpg", "e.jpg", "sub/d.jpg"]
    assert "linked folders not followed: 3" in done.stderr
    dry = call("denoise", "flight", "new", "--model", model, "--dry-run", rc=1)
    assert "flight/other" in dry.stderr and not Path("new").exists()


def test_followed_links(flight, model):
    "Each folder once, under the name of one of its links; an output behind a link is not read"
    copy(flight, "../disk/b.jpg", "../disk/deep/c.jpg", "sub/d.jpg")
    for name, to in (("other", "../disk"), ("deep", "../disk/deep"), ("loop", "."), ("again", "sub")):
        (flight / name).symlink_to(to)
    (flight.parent / "disk" / "back").symlink_to("../flight")
    for _ in range(2):
        done = call("denoise", "flight", "disk/out", "--follow-links", "--model", model, "--overwrite")
        assert tree("disk/out") == ["a.jpg", "deep/c.jpg", "other/b.jpg", "sub/d.jpg"]
        assert "4 denoised" in done.stderr and "not followed" not in done.stderr
    done = call("denoise", "flight", "--in-place", "--follow-links", "--model", model)
    assert "4 denoised, 4 skipped (" in done.stderr and "), 0 failed" in done.stderr


def test_a_link_without_pictures_is_no_loss(flight, model):
    (flight.parent / "logs").mkdir()
    (flight.parent / "logs/x.txt").touch()
    (flight / "logs").symlink_to("../logs")
    assert "not followed" not in call("denoise", "flight", "out", "--model", model).stderr


def test_from_python(flight, model):
    copy(flight, "../disk/b.jpg")
    (flight / "more").symlink_to("../disk")
    denoiser = Denoiser.load(model)
    left = denoise_folder("flight", "one", denoiser)
    assert (left.count("done"), left.links, len(left.errors)) == (1, 1, 1)
    taken = denoise_folder("flight", "two", denoiser, follow_links=True)
    assert (taken.count("done"), taken.links, taken.errors) == (2, 0, [])


@pytest.mark.parametrize("a,b", [*itertools.combinations(["x.tif", "x.dng", "x.NEF"], 2)])
def test_results_never_meet(flight, a, b):
    "The file that keeps its name wins; the other is named"
    for name in (a, b): (flight / name).write_bytes(b"x")
    todo = plan("flight", "out")
    assert len({j.target for j in todo.jobs}) == len(todo.jobs) == 2
    assert len(todo.errors) == 1 and "another file" in str(todo.errors[0])
    with pytest.raises(ConfigError): plan("flight/x.dng", "y.dng")


def test_find_images_are_those_that_can_be_read(flight):
    copy(flight, "b", "c.avif", "d.jfif")
    for name in ("e.heic", "f.nef", "g.psd"): (flight / name).write_bytes(HEIC)
    assert [p.name for p in find_images(flight)] == ["a.jpg", "b", "c.avif", "d.jfif"]
    assert len(find_below(flight).pictures) == 7 and {".heic", ".nef", ".psd"} <= PICTURE_SUFFIXES


def test_one_range_for_a_flight(tmp_path, monkeypatch, model):
    "Other light in each picture: with the range of the flight all are seen alike"
    monkeypatch.chdir(tmp_path)
    for i, light in enumerate((1000, 3000)):
        a = np.random.default_rng(i).normal(light, 200, (60, 70, 3)).clip(0).astype(np.uint16)
        (tmp_path / "f").mkdir(exist_ok=True)
        write_image(Picture(a), f"f/{i}.tif")
    def spans(*more):
        done = call("denoise", "f", "out" + "".join(more), "--model", model, "--json", "--strength", "1", *more)
        return [json.loads(line)["range"] for line in done.stdout.splitlines()]
    own, flight = spans(), spans("--range", "flight")
    assert own[0][1] < own[1][0]
    assert flight[0] == flight[1] and flight[0][0] < 1000 and flight[0][1] > 3000
    both = "--range", "0", "1", "--range", "flight"
    assert "--range" in call("denoise", "f", "x", "--model", model, *both, rc=2).stderr


def test_times_and_hard_links_on_request(flight, model):
    (flight / "again.jpg").hardlink_to(flight / "a.jpg")
    os.utime(flight / "a.jpg", (1e9, 1e9))
    call("denoise", "flight", "plain", "--model", model)
    done = call("denoise", "flight", "kept", "--model", model, "--keep-times", "--keep-hard-links", "--json")
    plain, kept = (Path(o) / "a.jpg" for o in ("plain", "kept"))
    assert plain.stat().st_mtime > 1.5e9 and not plain.samefile("plain/again.jpg")
    assert kept.stat().st_mtime == 1e9 and kept.samefile("kept/again.jpg")
    assert [r.get("link") for r in map(json.loads, done.stdout.splitlines())].count("kept/a.jpg") == 1
    call("denoise", "flight", "--in-place", "--model", model, "--keep-hard-links")
    assert (flight / "a.jpg").samefile(flight / "again.jpg") and (flight / "a.jpg").read_bytes() == plain.read_bytes()


def test_warnings_are_counted_by_kind(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").mkdir()
    for i in (5, 8):
        a = np.random.default_rng(i).integers(1, 255, (60, 70, 3), np.uint8)
        a[:, :i] = 0
        write_image(Picture(a), f"f/{i}.png")
    done = call("denoise", "f", "out", "--model", model, "--json")
    assert all("border" in r["warnings"][0] for r in map(json.loads, done.stdout.splitlines()))
    assert "f/5.png: 7% of the picture" in done.stderr and "2 files: n% of the picture" in done.stderr


def test_in_place_does_not_reach_through_a_link(flight, model):
    "What lies elsewhere is replaced on request only"
    (flight.parent / "elsewhere").mkdir()
    other = flight.parent / "elsewhere/x.jpg"
    other.write_bytes((flight / "a.jpg").read_bytes())
    (flight / "x.jpg").symlink_to(other)
    before = other.read_bytes()
    done = call("denoise", "flight", "--in-place", "--model", model, "--strength", "1", rc=1)
    assert other.read_bytes() == before and "x.jpg: is a link" in done.stderr and "--follow-links" in done.stderr
    call("denoise", "flight", "--in-place", "--follow-links", "--model", model, "--strength", "1")
    assert other.read_bytes() != before and (flight / "x.jpg").is_symlink()
