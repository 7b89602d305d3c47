"The benchmark: what is kept, what is measured again, what is left out, and the command."
import json
import subprocess
import sys
from importlib.util import find_spec
from shutil import copy

import cv2
import numpy as np
import pytest

pytest.importorskip("keras")
from made_bench import RESULTS
from tiny_model import box_model

from agri_cae.benchmark import quality
from agri_cae.benchmark.bench import BenchConfig, run_bench
from agri_cae.benchmark.claims import claims, load_promises
from agri_cae.benchmark.networks import NETS, bench_models, open_session, reference_net
from agri_cae.benchmark.quality import DIGITS
from agri_cae.benchmark.records import load_bench
from agri_cae.benchmark.scaling import measure_scaling
from agri_cae.benchmark.summary import mean_value, psnr_gains
from agri_cae.benchmark.timing import race_engines
from agri_cae.config import DataError, EvalConfig, ModelError
from agri_cae.evaluate import evaluate
from agri_cae.io.images import read_image, sample
from agri_cae.serve import Denoiser


@pytest.fixture
def folder(tmp_path):
    (tmp_path/"data").mkdir()
    x = np.round(read_image(sample("field_camera")).pixels[100:228, 220:348, ::-1] * 255).astype(np.uint8)
    for i in range(4): cv2.imwrite(str(tmp_path/"data"/f"{i}.png"), np.roll(x, 31 * i, 1))
    return tmp_path/"data"


def small(folder, out, box, **kw):
    given = dict(data=folder, train=(folder,), models={"box": box}, baselines=("opencv_bilateral",),
                 conditions=(25., "jpeg", "clean"), parts=("quality",))
    return run_bench(out, BenchConfig(**(given | kw)), progress=False)


def claim(bench, what):
    promises = load_promises(RESULTS/"claims.yaml")
    return next(c for c in claims(bench, promises) if c.what.startswith(what))


def test_it_goes_on_where_it_was_interrupted(tmp_path, folder, monkeypatch):
    box, out, calls = box_model(tmp_path), tmp_path/"bench.json", []
    def count(denoisers, cfg, **kw):
        calls.append((cfg.sigmas or cfg.recipes, sorted(denoisers), cfg.baselines))
        if len(calls) == 2: raise KeyboardInterrupt
        return evaluate(denoisers, cfg, **kw)
    monkeypatch.setattr(quality, "evaluate", count)
    with pytest.raises(KeyboardInterrupt): small(folder, out, box)
    assert {s.condition for s in load_bench(out).quality} == {"25"}
    b = small(folder, out, box)
    assert [c[0] for c in calls] == [(25.,), ("jpeg",), ("jpeg",), ("clean",)]
    assert b == load_bench(out) and len(b.series("box", "jpeg").psnr) == 4
    names = sorted(bench_models({"box": box}))
    calls[:] = [None] * 9
    assert small(folder, out, box) == b and len(calls) == 9                       # nothing is measured twice
    box_model(tmp_path, side=5)                                                   # other weights under the same name
    again = small(folder, out, box)
    assert [(c, d) for c, d, _ in calls[9:]] == [(c, ["box"]) for c in ((25.,), ("jpeg",), ("clean",))]
    assert "box" in names
    assert mean_value(again, "box", "clean") < mean_value(b, "box", "clean")
    assert again.series("fast", "25") == b.series("fast", "25")
    copy(folder/"0.png", folder/"9.png")                                          # other pictures: all anew
    fresh = small(folder, out, box)
    assert {len(s.psnr) for s in fresh.quality} == {5}


def test_numbers_are_those_of_evaluate(tmp_path, folder):
    b = small(folder, tmp_path/"b.json", box_model(tmp_path))
    factors = {"opencv_bilateral": {"jpeg": b.sigma_factors[0].factor}}
    cfg = EvalConfig(folder=str(folder), sigmas=(25.,), recipes=("jpeg",), baselines=("opencv_bilateral",),
                     sigma_factors=factors)
    report = evaluate({"box": Denoiser.for_evaluation(tmp_path/"box.onnx")}, cfg)
    for c, label in ((25., "25"), ("jpeg", "jpeg")):
        for m in ("noisy", "box", "opencv_bilateral"):
            s, rows = b.series(m, label), [r for r in report.rows if (r.condition, r.method) == (c, m)]
            for k in DIGITS: assert getattr(s, k) == pytest.approx([getattr(r, k) for r in rows], abs=1e-4)
    gains = np.subtract(b.series("box", "25").psnr, b.series("noisy", "25").psnr)
    assert psnr_gains(b, "box", "noisy", "25") == pytest.approx(gains)
    assert b.sets["test"]["images"] == [f"{i}.png" for i in range(4)] and str(tmp_path) not in b.model_dump_json()
    assert claim(b, "fast on clean pictures: mean").met is (mean_value(b, "fast", "clean") >= 42)


def test_clean_pictures_at_both_strengths(tmp_path, folder):
    b = small(folder, tmp_path/"b.json", box_model(tmp_path), conditions=("clean", "clean_auto"))
    assert not b.sigma_factors and {s.method for s in b.quality} == {"noisy", *b.models}
    assert mean_value(b, "box", "clean_auto") > mean_value(b, "box", "clean") + 3
    worst = min(b.series("fast", "clean_auto").psnr)
    assert claim(b, "fast on clean pictures, strength auto: worst PSNR").met is (worst >= 42)


def test_pairs_take_the_factor_of_camera(tmp_path, folder):
    for f in sorted(folder.iterdir())[:2]:
        x = cv2.imread(str(f))
        copy(f, tmp_path/f"{f.stem}_clean.png")
        noisy = np.clip(x + np.random.default_rng(0).normal(0, 9, x.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path/f"{f.stem}_noisy.png"), noisy)
    pairs = tmp_path/"pairs"
    pairs.mkdir()
    for f in [*tmp_path.glob("*_clean.png"), *tmp_path.glob("*_noisy.png")]: f.rename(pairs/f.name)
    b = small(folder, tmp_path/"b.json", box_model(tmp_path), data="", pairs=pairs, conditions=("camera",))
    assert {(s.condition, s.pictures) for s in b.quality} == {("paired", "pairs")} and b.left_out["test"]
    assert [(s.method, s.condition) for s in b.sigma_factors] == [("opencv_bilateral", "camera")]
    assert mean_value(b, "opencv_bilateral", "paired") > mean_value(b, "noisy", "paired")


def test_what_is_missing_is_said(tmp_path, folder, monkeypatch):
    for m in ("openvino", "bm3d"): monkeypatch.setitem(sys.modules, m, None)
    cfg = BenchConfig(data=folder, baselines=("opencv_bilateral", "bm3d"), conditions=(25.,),
                      parts=("engines", "quality"))
    b = run_bench(tmp_path/"b.json", cfg, progress=False)
    assert "openvino" in b.left_out["engines"] and "bm3d" in b.left_out["bm3d"]
    assert {"pairs", "train"} <= set(b.left_out)
    assert {s.method for s in b.quality} >= {"noisy", "opencv_bilateral", "fast"} and not b.series("bm3d", "25")
    with pytest.raises(ModelError, match=r"none\.onnx"): bench_models({"mine": tmp_path/"none.onnx"})


@pytest.mark.parametrize("name", NETS)
def test_reference_nets_run(name):
    x, s = np.random.default_rng(0).random((1, 3, 32, 48), np.float32), np.full((1, 1, 16, 24), .1, np.float32)
    session = open_session(reference_net(name), 1)
    def net(x): return session(x, s) if name == "ffdnet" else session(x)
    y = net(x)
    assert y.shape == x.shape and np.isfinite(y).all() and not np.array_equal(x, y)
    near = x.copy()
    near[..., 16, 24] += .5
    changed = np.abs(net(near) - y).max((0, 1)) > 1e-6
    assert changed.any(1).sum() > 20          # twelve layers at half size see 50 rows, twenty at full size 41


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_engines(tmp_path):
    names = [t.name for t in race_engines({"box": box_model(tmp_path)}, (64, 64), 1, 1)]
    assert names[:2] == ["box onnx float32", "box openvino float32"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux")
def test_the_picture_counts_in_memory(tmp_path):
    box = {"box": box_model(tmp_path)}
    a, b = measure_scaling(box, (1, 16), ("float32",), 1)
    assert b.picture_mb == pytest.approx(16 * a.picture_mb, rel=1e-4)
    assert b.peak_mb - a.peak_mb > 1.9 * (b.picture_mb - a.picture_mb)
    broken = tmp_path/"box.onnx"
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(DataError, match="box"): measure_scaling(box, (1,), ("uint8",), 1)


def command(*args, cwd=RESULTS.parents[1]):
    code = "from agri_cae.benchmark.report import bench_main; bench_main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=cwd)


def test_command(tmp_path, folder):
    done = command("--data", folder, "--pairs", folder/"none", "--out", tmp_path/"out", "--parts", "training,quality",
                   "--conditions", "25", "--baselines", "opencv_bilateral", "--every", 2)
    assert done.returncode == 0 and "| fast: PSNR at sigma 25 |" in done.stdout, done.stderr
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["_bench.md", "bench.json", "bench_training.png"]
    found = json.loads((tmp_path/"out"/"bench.json").read_text())["quality"]
    assert found and {len(s["psnr"]) for s in found} == {2}
    empty = tmp_path/"empty"
    empty.mkdir()
    for wrong in (("--parts", "speed"), ("--models", "fast"), ("--data", empty, "--parts", "quality")):
        bad = command("--out", tmp_path/"out", *wrong)
        assert bad.returncode == 1 and "Traceback" not in bad.stderr and bad.stderr.strip(), wrong
    bad = command("--out", "results", cwd=tmp_path)              # an installed package, away from a clone
    assert bad.returncode == 1 and "clone of the repository" in bad.stderr and not (tmp_path/"results").exists()


def test_import_is_light():
    heavy = "{'keras','tensorflow','matplotlib','skimage','onnx','openvino','mlflow'}"
    code = f"import sys, agri_cae.benchmark.report; print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
