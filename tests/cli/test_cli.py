"The `agri-cae` command from outside: results, messages, exit codes, and what is (not) left on disk."
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import badfiles
import numpy as np
import pytest
from tiny_model import box_model

import agri_cae
from agri_cae import serve
from agri_cae.cli.main import main
from agri_cae.io.images import Picture, provenance_of, read_image, sample, write_image
from agri_cae.modelfiles.card import shipped

ROOT = Path(__file__).parents[2]
needs_weights = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")
RUN = [sys.executable, "-c", "from agri_cae.cli.main import main; main()"]


@pytest.fixture(scope="module")
def model(tmp_path_factory): return str(box_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def env(**kw): return {**{k: v for k, v in os.environ.items() if not k.startswith("AGRI_CAE")}, "PYTHONPATH": str(ROOT), **kw}


def cli(*args, rc=0, text=True, **kw):
    "Run the command in a process of its own; its exit code must be `rc`"
    kw = {"env": env(), "capture_output": True, "timeout": 300} | kw
    done = subprocess.run([*RUN, *map(str, args)], text=text, errors="surrogateescape" if text else None, **kw)
    assert done.returncode == rc, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return done


def call(*args, rc=0):
    "The same in this process, which spares a second a run"
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=e, write_through=True) for e in ("strict", "backslashreplace"))
    with mock.patch.object(sys, "argv", ["agri-cae", *map(str, args)]), mock.patch.object(signal, "signal"), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as e: main()
    out, err = (f.buffer.getvalue().decode("utf-8", "surrogateescape") for f in (out, err))
    assert (e.value.code or 0) == rc, (e.value.code, out[-500:], err[-2000:])
    return SimpleNamespace(stdout=out, stderr=err)


def tree(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file() or p.is_symlink())
def picture(path, side=20, seed=0, bands=3, dtype=np.uint8):
    a = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (side, side + 3, bands), dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Picture(a), path, overwrite=True)
    return a


# one file

def test_file_default_name_and_once_only(here, model):
    picture(here / "a.png")
    done = cli("denoise", "a.png", "--model", model)
    assert (done.stdout, done.stderr) == ("a_denoised.png\n", "")
    assert provenance_of(read_image("a_denoised.png")).startswith(f"agri_cae {agri_cae.__version__} box@3")
    before = Path("a_denoised.png").read_bytes()
    done = cli("denoise", "a.png", "--model", model, "--strength", "0.5", rc=1)
    assert "--overwrite" in done.stderr and Path("a_denoised.png").read_bytes() == before
    cli("denoise", "a.png", "--model", model, "--strength", "0.5", "--overwrite")
    assert Path("a_denoised.png").read_bytes() != before
    assert tree(here) == ["a.png", "a_denoised.png"]


def test_pixels_are_the_librarys(here, model):
    a = picture(here / "a.png", dtype=np.uint16)
    call("denoise", "a.png", "b.tif", "--model", model, "--strength", "0.7", "--range", "100", "50000")
    assert (read_image("b.tif").data == serve.Denoiser.load(model, strength=.7, value_range=(100, 50000))(a)).all()
    call("denoise", "a.png", "c.png", "--model", model, "--ensemble", "2")
    assert (read_image("c.png").data == serve.Denoiser.load(model, ensemble=2)(a)).all() and provenance_of(read_image("c.png")).endswith("box@3 strength=1 ensemble=2")


def test_output_folder_for_a_file(here, model):
    picture(here / "a.png")
    assert call("denoise", "a.png", "new/", "--model", model).stdout == "new/a.png\n"
    assert tree(here) == ["a.png", "new/a.png"]


def test_never_onto_the_input_unless_told(here, model):
    picture(here / "a.png"); before = Path("a.png").read_bytes()
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
    assert "b.png" in done.stderr and "--force" in done.stderr and len(done.stderr.splitlines()) == 1 and not Path("c.png").exists()
    call("denoise", "b.png", "c.png", "--model", model, "--force")
    call("denoise", "b.png", "--in-place", "--model", model)      # in place, what is done is done
    call("denoise", "a.png", "--in-place", "--model", model)


# a folder

def test_folder_mirrors_names_and_resumes(here, model):
    for i, f in enumerate(("flight/leaf.png", "flight/leaf.tif", "flight/b/leaf.png", "flight/\u7530 \U0001f33e.webp")): picture(here / f, seed=i)
    (here / "flight/log.csv").write_text("x"); (here / "flight/bad.jpg").write_bytes(b"<html>")
    done = call("denoise", "flight", "clean", "--model", model, rc=1)
    names = ["b/leaf.png", "leaf.png", "leaf.tif", "\u7530 \U0001f33e.webp"]
    assert tree("clean") == names and sorted(done.stdout.splitlines()) == [f"clean/{n}" for n in names]
    errors = [l for l in done.stderr.splitlines() if l.startswith("ERROR")]
    assert len(errors) == 1 and "flight/bad.jpg" in errors[0] and "4 denoised, 0 skipped, 1 failed; 1 other" in done.stderr
    stamp = {p: p.stat().st_mtime_ns for p in Path("clean").rglob("*.*")}
    Path("clean/leaf.tif").unlink()
    done = call("denoise", "flight", "clean", "--model", model, rc=1)
    assert done.stdout == "clean/leaf.tif\n" and "1 denoised, 3 skipped, 1 failed" in done.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in stamp.items() if p.name != "leaf.tif")
    assert len(call("denoise", "flight", "clean", "--model", model, "--overwrite", rc=1).stdout.splitlines()) == 4


def test_output_inside_the_input_is_not_read_again(here, model):
    picture(here / "flight/a.png")
    for _ in range(2): call("denoise", "flight", "flight/out", "--model", model, "--overwrite")
    assert tree("flight") == ["a.png", "out/a.png"]


def test_folder_in_place_goes_on_after_a_break(here, model):
    for i in range(3): picture(here / f"flight/{i}.png", seed=i)
    call("denoise", "flight/1.png", "--in-place", "--model", model)
    before = Path("flight/1.png").read_bytes()
    done = call("denoise", "flight", "--in-place", "--model", model)
    assert "2 denoised, 1 skipped" in done.stderr and Path("flight/1.png").read_bytes() == before and tree("flight") == ["0.png", "1.png", "2.png"]


def test_default_folder_and_dry_run(here, model):
    picture(here / "flight/a.png"); picture(here / "flight/b.png"); picture(here / "flight_denoised/b.png")
    done = call("denoise", "flight", "--model", model, "--dry-run")
    assert [Path(l).name for l in done.stdout.splitlines()] == ["a.png"] and tree("flight_denoised") == ["b.png"]
    assert "b.png" in done.stderr
    call("denoise", "flight", "--model", model)
    assert tree("flight_denoised") == ["a.png", "b.png"]


def test_json(here, model):
    picture(here / "f/a.png"); (here / "f/b.png").write_bytes(b""); picture(here / "f/c.png"); picture(here / "o/c.png")
    lines = [json.loads(l) for l in call("denoise", "f", "o", "--model", model, "--json", rc=1).stdout.splitlines()]
    assert [(Path(l["source"]).name, l["status"]) for l in lines] == [("a.png", "done"), ("b.png", "failed"), ("c.png", "skipped")]
    assert lines[0]["target"] == "o/a.png" and lines[0]["seconds"] > 0 and "zero bytes" in lines[1]["error"]
    assert lines[0]["model"] == "box@3" and lines[0]["strength"] == 1 and lines[0]["sigma"] > 50


def test_json_tells_the_noise_and_auto_heeds_it(here, model):
    for sigma in (0, 2, 40):
        flat = np.random.default_rng(sigma).normal(128, sigma, (80, 90, 3)).round().clip(0, 255).astype(np.uint8)
        (here / "f").mkdir(exist_ok=True); write_image(Picture(flat), here / "f" / f"{sigma:02}.png")
    for strength, used in (("auto", (0, .5, 1)), ("0.3", (.3, .3, .3))):
        lines = [json.loads(l) for l in call("denoise", "f", f"o{strength}", "--model", model, "--strength", strength, "--json").stdout.splitlines()]
        assert [l["sigma"] for l in lines] == pytest.approx([0, 2, 40], rel=.1) and [l["strength"] for l in lines] == pytest.approx(used, abs=.06)
        assert {l["model"] for l in lines} == {"box@3"}
        for l in lines: assert provenance_of(read_image(l["target"])).endswith(f"box@3 strength={l['strength']:g}")
    assert (read_image("oauto/00.png").data == read_image("f/00.png").data).all()


def test_engine(here, model):
    a = picture(here / "a.png")
    call("denoise", "a.png", "b.png", "--model", model, "--engine", "openvino", "--threads", "1")
    assert np.abs(np.int16(read_image("b.png").data) - serve.Denoiser.load(model)(a)).max() <= 1


def test_quiet(here, model):
    picture(here / "f/a.png"); (here / "f/b.png").write_bytes(b""); (here / "f/c.txt").write_text("")
    done = call("denoise", "f", "o", "--model", model, "-q", rc=1)
    assert len(done.stderr.splitlines()) == 1 and "b.png" in done.stderr and done.stdout == "o/a.png\n"


# streams

def test_estimate(here):
    for name, sigma in (("a", 10), ("b", 40)):
        flat = np.random.default_rng(0).normal(128, sigma, (80, 90, 3)).round().clip(0, 255).astype(np.uint8)
        (here / "in").mkdir(exist_ok=True); write_image(Picture(flat), here / "in" / f"{name}.png")
    found = [json.loads(l) for l in call("estimate", "in", "--json").stdout.splitlines()]
    assert [f["source"] for f in found] == ["in/a.png", "in/b.png"]
    assert [f["sigma"] for f in found] == pytest.approx([10, 40], rel=.05) and all(f["gain"] >= 0 <= f["read"] for f in found)
    assert call("estimate", "in/a.png").stdout.startswith("in/a.png  sigma ")
    picture(here / "in" / "tiny.png", side=3); (here / "in" / "bad.jpg").write_bytes(b"")
    done = call("estimate", "in", rc=1)
    assert len(done.stdout.splitlines()) == 2 and "in/tiny.png: is too small" in done.stderr and "in/bad.jpg" in done.stderr
    assert "nowhere" in call("estimate", "nowhere", rc=1).stderr
    assert "value_range" in call("estimate", "in", "--range", "5", "1", rc=2).stderr


def test_streams(here, model):
    picture(here / "a.png"); data = Path("a.png").read_bytes()
    cli("denoise", "a.png", "b.png", "--model", model)
    done = cli("denoise", "-", "--model", model, input=data, text=False)
    assert done.stdout == Path("b.png").read_bytes() and done.stderr == b""
    assert cli("denoise", "a.png", "-", "--model", model, text=False).stdout == done.stdout
    cli("denoise", "-", "c.tif", "--model", model, input=data, text=False)
    assert (read_image("c.tif").data == read_image("b.png").data).all() and read_image("c.tif").format == "tiff"
    done = cli("denoise", "-", "--model", model, input=b"", text=False, rc=1)
    assert done.stdout == b"" and b"zero bytes" in done.stderr
    cli("denoise", "-", "--model", model, "--json", input=data, text=False, rc=2)
    cli("denoise", ".", "-", "--model", model, rc=2)


def test_reader_that_goes_away(here, model):
    "`agri-cae denoise folder | head -1` ends without a traceback"
    for i in range(6): picture(here / f"f/{i}.png")
    p = subprocess.Popen([*RUN, "denoise", "f", "o", "--model", model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())
    p.stdout.close()
    stderr = p.stderr.read(); p.wait(timeout=100)
    assert "Traceback" not in stderr and p.returncode == 1 and not [f for f in tree(here) if "tmp" in f]


# usage

@pytest.mark.parametrize("args", [("denoise",), ("denoise", "gone.png"), ("denoise", "a.png", "--strength", "2"), ("denoise", "a.png", "--strength", "much"), ("denoise", "a.png", "--tile", "7"), ("denoise", "a.png", "--ensemble", "9"), ("denoise", "a.png", "--engine", "torch"),
                                  ("denoise", "a.png", "--precision", "bfloat16"), ("denoise", "a.png", "--precision", "half", "--engine", "openvino"), ("denoise", "a.png", "--model", "fats"),
                                  ("denoise", "a.png", "b.png", "c.png"), ("denois", "a.png"), ("denoise", "a.png", "--range", "1", "x"), ("denoise", "a.png", "b.png", "--in-place"),
                                  ("train", "--set", "epoch=3"), ("train", "--config", "gone.yaml"), ("data", "check"), ("data", "check", "gone"), ("evaluate", "gone"), ("evaluate", "--sigmas", "x")], ids=" ".join)
def test_usage(here, args):
    picture(here / "a.png")
    done = call(*args, rc=2)
    assert done.stdout == "" and "Traceback" not in done.stderr and done.stderr.strip() and tree(here) == ["a.png"]


@pytest.mark.parametrize("option", [("--engine", "onnx"), ("--precision", "float32"), ("--threads", "1"), ("--ensemble", "4")], ids=lambda o: o[0])
def test_what_is_up_to_the_service(here, option):
    picture(here / "a.png")
    assert f"{option[0]}: is up to the service" in call("denoise", "a.png", *option, "--server", "http://127.0.0.1:9", rc=2).stderr


def test_wrong_settings(here, model):
    picture(here / "a.png")
    done = cli("denoise", "a.png", "--model", model, rc=2, env=env(AGRI_CAE_LOG_LEVEL="LOUD"))
    assert "log_level" in done.stderr and len(done.stderr.splitlines()) == 1


def test_version_and_help(here):
    assert cli("--version").stdout == f"agri-cae {agri_cae.__version__}\n"
    assert all(c in call("--help").stdout for c in ("denoise", "train", "evaluate", "data", "demo"))


def test_traceback_only_when_asked(here, model):
    (here / "a.png").write_bytes(b"")
    assert "Traceback" not in call("denoise", "gone.png", rc=2).stderr
    assert "Traceback" in call("--debug", "denoise", "gone.png", rc=2).stderr
    assert "Traceback" in cli("denoise", "gone.png", rc=2, env=env(AGRI_CAE_LOG_LEVEL="DEBUG")).stderr


# bad input

@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return folder, list(badfiles.make(folder))


def test_bad_files_in_one_batch(bad, model, tmp_path):
    "Every kind of bad input in one folder: each bad file one error, each good one a result, nothing else on disk"
    folder, cases = bad
    assert sum(expected == "error" for _, expected, _ in cases) >= 30
    done = cli("denoise", folder, tmp_path / "out", "--model", model, "--json", rc=1)
    got = {os.path.basename(r["source"]): r for r in map(json.loads, done.stdout.splitlines())}
    wrong = [(name, expected, why, got.get(name)) for name, expected, why in cases if name != "folder.png" and got.get(name, {}).get("status") != dict(ok="done", error="failed")[expected]]
    assert not wrong, wrong
    assert sorted(os.fsencode(f) for f in tree(tmp_path / "out")) == sorted(os.fsencode(n) for n, expected, _ in cases if expected == "ok")
    assert "Traceback" not in done.stderr and not any("unexpected" in r.get("error", "") for r in got.values())
    errors = [l for l in done.stderr.splitlines() if l.startswith("ERROR")]
    assert len(errors) == sum(r["status"] == "failed" for r in got.values())


def test_bad_files_one_by_one(bad, model, tmp_path):
    "The same as single files: one error line that names the file, exit code 1, no output"
    folder, cases = bad
    for name, expected, why in cases:
        out = tmp_path / "out" / name
        done = call("denoise", folder / name, out, "--model", model, rc=dict(ok=0, error=1)[expected])
        if expected == "ok": assert (done.stdout, out.is_file()) == (f"{out}\n", True), (name, done.stderr)
        else:
            assert (done.stdout, out.exists(), len(done.stderr.splitlines())) == ("", False, 1) and name in done.stderr, (name, why, done.stderr)
    assert not [f for f in os.listdir(tmp_path / "out") if f.endswith(".tmp")]


# disk

def test_output_that_cannot_be_written(here, model):
    picture(here / "a.png"); (here / "file").write_text("x")
    for out in ("file/b.png", "/dev/null/b.png", "n" * 300 + ".png"):
        done = call("denoise", "a.png", out, "--model", model, rc=1)
        assert len(done.stderr.splitlines()) == 1 and "ERROR" in done.stderr
    assert tree(here) == ["a.png", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(here, model):
    picture(here / "a.png"); (here / "ro").mkdir(mode=0o555)
    assert "ro" in call("denoise", "a.png", "ro/", "--model", model, rc=1).stderr


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 256 kB"
    disk = tmp_path / "disk"; disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system")
    yield disk
    subprocess.run(["umount", disk])


def test_full_disk(small_disk, here, model):
    picture(here / "f/a.png", 30); picture(here / "f/b.png", 400); picture(here / "f/c.png", 30)
    done = call("denoise", "f", small_disk, "--model", model, rc=1)
    assert tree(small_disk) == ["a.png", "c.png"] and "b.png" in done.stderr and "space" in done.stderr.lower() and len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("sig, codes", [(signal.SIGINT, {130}), (signal.SIGTERM, {143}), (signal.SIGKILL, {-9})])
def test_killed_in_the_middle(here, sig, codes, model):
    "Whole files or none; and Ctrl-C or a polite kill leave no temporary file either"
    for i in range(150): picture(here / f"f/{i:02}.png", 300, seed=i)
    p = subprocess.Popen([*RUN, "denoise", "f", "o", "--model", model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env())
    p.stdout.readline(); time.sleep(.01)
    p.send_signal(sig)
    _, stderr = p.communicate(timeout=100)
    done = [f for f in tree("o") if not f.startswith(".")] if Path("o").exists() else []
    assert p.returncode in codes and 1 <= len(done) < 150 and "Traceback" not in stderr, (p.returncode, len(done), stderr)
    for f in done: assert read_image(f"o/{f}").data.shape == (300, 303, 3)
    if sig != signal.SIGKILL: assert tree("o") == done
    cli("denoise", "f", "o", "--model", model)
    assert len([f for f in tree("o") if not f.startswith(".")]) == 150


# large

def _peak(args):
    "Exit code and peak resident memory, bytes, of a command. It is started by a small process: what the starter holds would count as well"
    code = "import resource, subprocess, sys; rc = subprocess.call(sys.argv[1:], stdout=2); print(rc, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    out = subprocess.run([sys.executable, "-c", code, *RUN, *map(str, args)], env=env(), stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(out.split()[0]), int(out.split()[1]) * (1 if sys.platform == "darwin" else 1024)


@needs_weights
@pytest.mark.parametrize("format", [pytest.param("jpg"), pytest.param("tif", marks=pytest.mark.skipif(not os.environ.get("AGRI_CAE_SLOW"), reason="slow; set AGRI_CAE_SLOW=1"))])
def test_100_megapixels(here, format):
    "Peak memory of the whole command stays below 1.5 GB"
    flower = read_image(sample("field_camera"))
    big = np.tile(flower.data, (24, 16, 1))[:10000, :10000]
    write_image(Picture(big, format=dict(jpg="jpeg", tif="tiff")[format]), here / f"big.{format}")
    del big
    rc, peak = _peak(["denoise", f"big.{format}", "--model", "fast", "-q"])
    assert rc == 0 and read_image(f"big_denoised.{format}").data.shape == (10000, 10000, 3)
    assert peak < 1.5e9, f"{peak / 1e9:.2f} GB"
