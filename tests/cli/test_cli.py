"`agri-cae denoise` from outside: results, messages, exit codes, and what is (not) left on disk."
import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import call, cli, picture, tree

import agri_cae
from agri_cae import serve
from agri_cae.io.images import Picture, provenance_of, read_image, write_image


def test_file_default_name_and_once_only(here, model):
    picture(here / "a.png")
    done = cli("denoise", "a.png", "--model", model)
    assert (done.stdout, done.stderr) == ("a_denoised.png\n", "")
    assert provenance_of(read_image("a_denoised.png")).startswith(f"agri_cae {agri_cae.__version__} box@3")
    before = Path("a_denoised.png").read_bytes()
    done = call("denoise", "a.png", "--model", model, "--strength", "0.5", rc=1)
    assert "--overwrite" in done.stderr and Path("a_denoised.png").read_bytes() == before
    call("denoise", "a.png", "--model", model, "--strength", "0.5", "--overwrite")
    assert Path("a_denoised.png").read_bytes() != before
    assert tree(here) == ["a.png", "a_denoised.png"]


def test_pixels_are_the_librarys(here, model):
    a = picture(here / "a.png", dtype=np.uint16)
    call("denoise", "a.png", "b.tif", "--model", model, "--strength", "0.7", "--range", "100", "50000")
    assert (read_image("b.tif").data == serve.Denoiser.load(model, strength=.7, value_range=(100, 50000))(a)).all()
    call("denoise", "a.png", "c.png", "--model", model, "--ensemble", "2")
    assert (read_image("c.png").data == serve.Denoiser.load(model, ensemble=2)(a)).all()
    assert provenance_of(read_image("c.png")).endswith("box@3 strength=1 ensemble=2")


def test_output_folder_for_a_file(here, model):
    picture(here / "a.png")
    assert call("denoise", "a.png", "new/", "--model", model).stdout == "new/a.png\n"
    assert tree(here) == ["a.png", "new/a.png"]


def test_never_onto_the_input_unless_told(here, model):
    picture(here / "a.png")
    before = Path("a.png").read_bytes()
    for out in ("a.png", "./a.png", here / "a.png", "."):
        assert "--in-place" in call("denoise", "a.png", out, "--model", model, "--overwrite", rc=2).stderr
    os.symlink("a.png", "link.png")
    assert "--in-place" in call("denoise", "a.png", "link.png", "--model", model, "--overwrite", rc=2).stderr
    assert Path("a.png").read_bytes() == before
    call("denoise", "a.png", "--in-place", "--model", model)
    assert Path("a.png").read_bytes() != before and tree(here) == ["a.png", "link.png"]


def test_second_pass_is_refused(here, model):
    picture(here / "a.png")
    call("denoise", "a.png", "b.png", "--model", model)
    done = call("denoise", "b.png", "c.png", "--model", model, rc=1)
    assert "b.png" in done.stderr
    assert "--force" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("c.png").exists()
    call("denoise", "b.png", "c.png", "--model", model, "--force")
    call("denoise", "b.png", "--in-place", "--model", model)      # in place, what is done is done
    call("denoise", "a.png", "--in-place", "--model", model)


# a folder

def test_folder_mirrors_names_and_resumes(here, model):
    for i, f in enumerate(("flight/leaf.png", "flight/leaf.tif", "flight/b/leaf.png", "flight/\u7530 \U0001f33e.webp")):
        picture(here / f, seed=i)
    (here / "flight/log.csv").write_text("x")
    (here / "flight/bad.jpg").write_bytes(b"<html>")
    done = call("denoise", "flight", "clean", "--model", model, rc=1)
    names = ["b/leaf.png", "leaf.png", "leaf.tif", "\u7530 \U0001f33e.webp"]
    assert tree("clean") == names and sorted(done.stdout.splitlines()) == [f"clean/{n}" for n in names]
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert "flight/bad.jpg" in errors[0]
    assert "4 denoised, 0 skipped, 1 failed; 1 other" in done.stderr
    stamp = {p: p.stat().st_mtime_ns for p in Path("clean").rglob("*.*")}
    Path("clean/leaf.tif").unlink()
    done = call("denoise", "flight", "clean", "--model", model, rc=1)
    assert done.stdout == "clean/leaf.tif\n" and "1 denoised, 3 skipped (there already" in done.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in stamp.items() if p.name != "leaf.tif")
    assert len(call("denoise", "flight", "clean", "--model", model, "--overwrite", rc=1).stdout.splitlines()) == 4


def test_output_inside_the_input_is_not_read_again(here, model):
    picture(here / "flight/a.png")
    for _ in range(2):
        call("denoise", "flight", "flight/out", "--model", model, "--overwrite")
    assert tree("flight") == ["a.png", "out/a.png"]


def test_folder_in_place_goes_on_after_a_break(here, model):
    for i in range(3): picture(here / f"flight/{i}.png", seed=i)
    call("denoise", "flight/1.png", "--in-place", "--model", model)
    before = Path("flight/1.png").read_bytes()
    done = call("denoise", "flight", "--in-place", "--model", model)
    assert "2 denoised, 1 skipped" in done.stderr
    assert Path("flight/1.png").read_bytes() == before
    assert tree("flight") == ["0.png", "1.png", "2.png"]


def test_default_folder_and_dry_run(here, model):
    picture(here / "flight/a.png")
    picture(here / "flight/b.png")
    picture(here / "flight_denoised/b.png")
    done = call("denoise", "flight", "--model", model, "--dry-run")
    assert [Path(line).name for line in done.stdout.splitlines()] == ["a.png"] and tree("flight_denoised") == ["b.png"]
    assert "1 to be skipped" in done.stderr
    call("denoise", "flight", "--model", model)
    assert tree("flight_denoised") == ["a.png", "b.png"]


def test_json(here, model):
    picture(here / "f/a.png")
    (here / "f/b.png").write_bytes(b"")
    picture(here / "f/c.png")
    picture(here / "o/c.png")
    out = call("denoise", "f", "o", "--model", model, "--json", rc=1).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(Path(line["source"]).name, line["status"]) for line in lines] == [
        ("a.png", "done"),
        ("b.png", "failed"),
        ("c.png", "skipped"),
    ]
    assert lines[0]["target"] == "o/a.png" and lines[0]["seconds"] > 0 and "zero bytes" in lines[1]["error"]
    assert lines[0]["model"] == "box@3" and lines[0]["strength"] == 1 and lines[0]["sigma"] > 50


def test_json_tells_the_noise_and_auto_heeds_it(here, model):
    for sigma in (0, 2, 40):
        ramp = np.broadcast_to(np.arange(80, 170)[:, None], (80, 90, 3))
        flat = np.random.default_rng(sigma).normal(ramp, sigma).round().clip(0, 255).astype(np.uint8)
        (here / "f").mkdir(exist_ok=True)
        write_image(Picture(flat), here / "f" / f"{sigma:02}.png")
    for strength, used in (("auto", (0, .5, 1)), ("0.3", (.3, .3, .3))):
        lines = [
            json.loads(line)
            for line in call(
                "denoise", "f", f"o{strength}", "--model", model, "--strength", strength, "--json"
            ).stdout.splitlines()
        ]
        assert [line["sigma"] for line in lines] == pytest.approx([0, 2, 40], rel=.1, abs=.1)
        assert [line["strength"] for line in lines] == pytest.approx(used, abs=.06)
        assert {line["model"] for line in lines} == {"box@3"}
        assert [line.get("left", "")[:7] for line in lines] == ["" if s else "noise 0" for s in used]
        for line in lines:
            mark = provenance_of(read_image(line["target"]))
            assert mark.endswith(f"box@3 strength={line['strength']:g}") if line["strength"] else mark is None
    assert Path("oauto/00.png").read_bytes() == Path("f/00.png").read_bytes()
    assert "f/00.png: left as it is (noise 0." in call("denoise", "f/00.png", "one.png", "--model", model).stderr
    assert "3 denoised (1 of them left as they are)" in call("denoise", "f", "again", "--model", model).stderr


def test_engine(here, model):
    a = picture(here / "a.png")
    call("denoise", "a.png", "b.png", "--model", model, "--engine", "openvino", "--threads", "1")
    assert np.abs(np.int16(read_image("b.png").data) - serve.Denoiser.load(model)(a)).max() <= 1


def test_quiet(here, model):
    picture(here / "f/a.png")
    (here / "f/b.png").write_bytes(b"")
    (here / "f/c.txt").write_text("")
    done = call("denoise", "f", "o", "--model", model, "-q", rc=1)
    assert len(done.stderr.splitlines()) == 1 and "b.png" in done.stderr and done.stdout == ""
