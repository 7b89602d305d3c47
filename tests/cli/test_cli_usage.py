"Streams, `agri-cae estimate`, and wrong usage."
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import call, cli, env, on_terminal, picture, start, tree

import agri_cae
from agri_cae.io.images import Picture, read_image, write_image


def test_estimate(here):
    for name, sigma in (("a", 10), ("b", 40)):
        flat = np.random.default_rng(0).normal(128, sigma, (80, 90, 3)).round().clip(0, 255).astype(np.uint8)
        (here / "in").mkdir(exist_ok=True)
        write_image(Picture(flat), here / "in" / f"{name}.png")
    found = [json.loads(line) for line in call("estimate", "in", "--json").stdout.splitlines()]
    assert [f["source"] for f in found] == ["in/a.png", "in/b.png"]
    assert [f["sigma"] for f in found] == pytest.approx([10, 40], rel=.05)
    assert all(f["gain"] >= 0 <= f["read"] for f in found)
    assert call("estimate", "in/a.png").stdout.startswith("in/a.png  sigma ")
    picture(here / "in" / "tiny.png", side=3)
    (here / "in" / "bad.jpg").write_bytes(b"")
    done = call("estimate", "in", rc=1)
    assert len(done.stdout.splitlines()) == 2
    assert "in/tiny.png: is too small" in done.stderr
    assert "in/bad.jpg" in done.stderr
    assert "nowhere" in call("estimate", "nowhere", rc=1).stderr
    assert "--range: the first value must be below" in call("estimate", "in", "--range", "5", "1", rc=2).stderr


def test_bar_on_a_terminal(here, model):
    "Count, megapixels, time left, current file; what cannot be done is named; Ctrl-C says how to go on"
    for i in range(6): picture(here / f"f/{i}.png", 1000, seed=i)
    (here / "f/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    args = "denoise", "f", "o", "--model", model
    code, shown = on_terminal(*args, until="1 MP, 1.png")
    done = tree("o")
    last = shown.split("\r\n")[-2]
    assert code == 130 and 1 <= len(done) < 6, shown
    said = re.search(r"\rWARNING stopped: (\d) of 7 files are denoised, 0 failed. The same command goes on", last)
    assert int(said[1]) in (len(done) - 1, len(done))
    code, shown = on_terminal(*args)
    assert code == 1 and len(tree("o")) == 6
    assert re.search(r"5/7 \[00:\d\d<00:\d\d, .*file/s, \d MP, bad.png\]", shown), shown
    assert f"INFO {6 - len(done)} denoised, {len(done)} skipped (there already, or" in shown
    assert "ERROR f/bad.png: " in shown
    assert "tile/s]" in on_terminal("denoise", "f/1.png", "x.png", "--model", model)[1]


def test_streams(here, model):
    picture(here / "a.png")
    data = Path("a.png").read_bytes()
    call("denoise", "a.png", "b.png", "--model", model)
    done = cli("denoise", "-", "--model", model, input=data, text=False)
    assert done.stdout == Path("b.png").read_bytes() and done.stderr == b""
    assert cli("denoise", "a.png", "-", "--model", model, text=False).stdout == done.stdout
    cli("denoise", "-", "c.tif", "--model", model, input=data, text=False)
    assert (read_image("c.tif").data == read_image("b.png").data).all() and read_image("c.tif").format == "tiff"
    done = cli("denoise", "-", "--model", model, input=b"", text=False, rc=1)
    assert done.stdout == b"" and b"zero bytes" in done.stderr
    assert "--json" in call("denoise", "-", "--model", model, "--json", rc=2).stderr
    assert "a folder" in call("denoise", ".", "-", "--model", model, rc=2).stderr


def test_reader_that_goes_away(here, model):
    "`agri-cae denoise folder | head -1` ends without a traceback"
    for i in range(6): picture(here / f"f/{i}.png")
    p = start("denoise", "f", "o", "--model", model)
    p.stdout.close()
    stderr = p.stderr.read()
    p.wait(timeout=100)
    assert "Traceback" not in stderr and p.returncode == 1 and not [f for f in tree(here) if "tmp" in f]


# usage

@pytest.mark.parametrize(
    "args",
    [
        ("denoise",),
        ("denoise", "gone.png"),
        ("denoise", "a.png", "--strength", "2"),
        ("denoise", "a.png", "--strength", "much"),
        ("denoise", "a.png", "--tile", "7"),
        ("denoise", "a.png", "--ensemble", "9"),
        ("denoise", "a.png", "--engine", "torch"),
        ("denoise", "a.png", "--precision", "bfloat16"),
        ("denoise", "a.png", "--precision", "half", "--engine", "openvino"),
        ("denoise", "a.png", "--model", "fats"),
        ("denoise", "a.png", "b.png", "c.png"),
        ("denois", "a.png"),
        ("denoise", "a.png", "--range", "1", "x"),
        ("denoise", "a.png", "b.png", "--in-place"),
        ("train", "--set", "epoch=3"),
        ("train", "--config", "gone.yaml"),
        ("data", "check"),
        ("data", "check", "gone"),
        ("evaluate", "gone"),
        ("evaluate", "--sigmas", "x"),
    ],
    ids=" ".join,
)
def test_usage(here, args):
    picture(here / "a.png")
    done = call(*args, rc=2)
    assert done.stdout == "" and "Traceback" not in done.stderr and done.stderr.strip() and tree(here) == ["a.png"]


@pytest.mark.parametrize(
    "option",
    [("--engine", "onnx"), ("--precision", "float32"), ("--threads", "1"), ("--ensemble", "4")],
    ids=lambda o: o[0],
)
def test_what_is_up_to_the_service(here, option):
    picture(here / "a.png")
    assert (
        f"{option[0]}: is up to the service"
        in call("denoise", "a.png", *option, "--server", "http://127.0.0.1:9", rc=2).stderr
    )


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


def test_estimate_sees_what_denoising_sees(here, model):
    "Not the range of the type, and no nodata: 16 bits with NaN's place taken by 0"
    a = np.random.default_rng(0).normal(7000, 40, (90, 100, 3)).round().astype(np.uint16)
    a[:, :30] = 0
    write_image(Picture(a), here / "a.tif")
    found = json.loads(call("estimate", "a.tif", "--json").stdout)
    done = json.loads(call("denoise", "a.tif", "b.tif", "--model", model, "--json").stdout)
    assert found["sigma"] == pytest.approx(done["sigma"], abs=0.01) and found["sigma"] > 5
    assert found["kind"] == done["kind"]
