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
from tiny_model import box_model

from agri_cae.benchmark import bench as module
from agri_cae.benchmark.bench import Bench, run_bench
from agri_cae.benchmark.claims import claims, gains, mean
from agri_cae.benchmark.timing import NETS, bench_models, measure_scaling, open_session, race_engines, reference_net
from agri_cae.config import DataError, ModelError
from agri_cae.io.images import read_image, sample


@pytest.fixture
def folder(tmp_path):
    (tmp_path/"data").mkdir()
    x = np.round(read_image(sample("field_camera")).pixels[100:228, 220:348, ::-1] * 255).astype(np.uint8)
    for i in range(4): cv2.imwrite(str(tmp_path/"data"/f"{i}.png"), np.roll(x, 31 * i, 1))
    return tmp_path/"data"


def small(folder, out, box, **kw):
    given = dict(data=folder, train=folder, models={"box": box}, baselines=("opencv_bilateral",), conditions=(25., "jpeg", "clean"), parts=("quality",), progress=False)
    return run_bench(out, **(given | kw))


def test_it_goes_on_where_it_was_interrupted(tmp_path, folder, monkeypatch):
    box, out, calls = box_model(tmp_path), tmp_path/"bench.json", []
    def count(denoisers, cfg, **kw):
        calls.append((cfg.sigmas or cfg.recipes, sorted(denoisers), cfg.baselines))
        if len(calls) == 2: raise KeyboardInterrupt
        return real(denoisers, cfg, **kw)
    real = module.evaluate
    monkeypatch.setattr(module, "evaluate", count)
    with pytest.raises(KeyboardInterrupt): small(folder, out, box)
    assert {s.condition for s in Bench.load(out).quality} == {"25"}
    b = small(folder, out, box)
    assert [c[0] for c in calls] == [(25.,), ("jpeg",), ("jpeg",), ("clean",)]
    assert b == Bench.load(out) and len(b.series("box", "jpeg").psnr) == 4
    names = sorted(bench_models({"box": box}))
    calls[:] = [None] * 9
    assert small(folder, out, box) == b and len(calls) == 9                       # nothing is measured twice
    box_model(tmp_path, side=5)                                                   # other weights under the same name
    again = small(folder, out, box)
    assert [(c, d) for c, d, _ in calls[9:]] == [((25.,), ["box"]), (("jpeg",), ["box"]), (("clean",), ["box"])] and "box" in names
    assert mean(again, "box", "clean") < mean(b, "box", "clean") and again.series("fast", "25") == b.series("fast", "25")
    copy(folder/"0.png", folder/"9.png")                                          # other pictures: all anew
    fresh = small(folder, out, box)
    assert {len(s.psnr) for s in fresh.quality} == {5}


def test_numbers_are_those_of_evaluate(tmp_path, folder):
    from agri_cae.config import EvalConfig
    from agri_cae.evaluate import evaluate
    from agri_cae.serve import Denoiser
    b = small(folder, tmp_path/"b.json", box_model(tmp_path))
    factor = b.strengths[0].factor
    report = evaluate({"box": Denoiser.load(tmp_path/"box.onnx")}, EvalConfig(folder=str(folder), sigmas=(25.,), recipes=("jpeg",), baselines=("opencv_bilateral",), strengths={"opencv_bilateral": {"jpeg": factor}}))
    for c, label in ((25., "25"), ("jpeg", "jpeg")):
        for m in ("noisy", "box", "opencv_bilateral"):
            s = b.series(m, label)
            for k in ("psnr", "ssim", "canopy_error", "match_retention"):
                assert getattr(s, k) == pytest.approx([getattr(r, k) for r in report.rows if (r.condition, r.method) == (c, m)], abs=1e-4)
    assert gains(b, "box", "noisy", "25") == pytest.approx(np.subtract(b.series("box", "25").psnr, b.series("noisy", "25").psnr))
    assert b.sets["test"]["images"] == [f"{i}.png" for i in range(4)] and str(tmp_path) not in b.model_dump_json()
    assert next(c for c in claims(b) if c.what.startswith("fast on clean pictures: mean")).met is (mean(b, "fast", "clean") >= 42)


def test_clean_pictures_at_both_strengths(tmp_path, folder):
    b = small(folder, tmp_path/"b.json", box_model(tmp_path), conditions=("clean", "clean_auto"))
    assert not b.strengths and {s.method for s in b.quality} == {"noisy", *b.models}
    assert mean(b, "box", "clean_auto") > mean(b, "box", "clean") + 3
    worst = min(b.series("fast", "clean_auto").psnr)
    assert next(c for c in claims(b) if c.what == "fast on clean pictures, strength auto: worst PSNR").met is (worst >= 42)


def test_pairs_take_the_strength_of_camera(tmp_path, folder):
    for f in sorted(folder.iterdir())[:2]:
        x = cv2.imread(str(f)); copy(f, tmp_path/f"{f.stem}_clean.png")
        cv2.imwrite(str(tmp_path/f"{f.stem}_noisy.png"), np.clip(x + np.random.default_rng(0).normal(0, 9, x.shape), 0, 255).astype(np.uint8))
    pairs = tmp_path/"pairs"; pairs.mkdir()
    for f in [*tmp_path.glob("*_clean.png"), *tmp_path.glob("*_noisy.png")]: f.rename(pairs/f.name)
    b = small(folder, tmp_path/"b.json", box_model(tmp_path), data="", pairs=pairs, conditions=("camera",))
    assert {s.condition for s in b.quality} == {"paired"} and {s.pictures for s in b.quality} == {"pairs"} and b.left_out["test"]
    assert [(s.method, s.condition) for s in b.strengths] == [("opencv_bilateral", "camera")] and mean(b, "opencv_bilateral", "paired") > mean(b, "noisy", "paired")


def test_what_is_missing_is_said(tmp_path, folder, monkeypatch):
    for m in ("openvino", "bm3d"): monkeypatch.setitem(sys.modules, m, None)
    b = run_bench(tmp_path/"b.json", folder, baselines=("opencv_bilateral", "bm3d"), conditions=(25.,), parts=("engines", "quality"), progress=False)
    assert "openvino" in b.left_out["engines"] and "bm3d" in b.left_out["bm3d"] and {"pairs", "train"} <= set(b.left_out)
    assert {s.method for s in b.quality} >= {"noisy", "opencv_bilateral", "fast"} and not b.series("bm3d", "25")
    with pytest.raises(ModelError, match="none.onnx"): bench_models({"mine": tmp_path/"none.onnx"})


@pytest.mark.parametrize("name", NETS)
def test_reference_nets_run(name):
    x, s = np.random.default_rng(0).random((1, 3, 32, 48), np.float32), np.full((1, 1, 16, 24), .1, np.float32)
    net = open_session(reference_net(name), 1)
    y = net(x, s) if name == "ffdnet" else net(x)
    assert y.shape == x.shape and np.isfinite(y).all() and not np.array_equal(x, y)
    near = x.copy(); near[..., 16, 24] += .5
    changed = np.abs((net(near, s) if name == "ffdnet" else net(near)) - y).max((0, 1)) > 1e-6
    rows = np.flatnonzero(changed.any(1))
    assert len(rows) > 20          # twelve layers at half size see 50 rows, twenty at full size 41


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_engines(tmp_path):
    names = [t.name for t in race_engines({"box": box_model(tmp_path)}, (64, 64), 1, 1)]
    assert names[:2] == ["box onnx float32", "box openvino float32"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux")
def test_the_picture_counts_in_memory(tmp_path):
    box = {"box": box_model(tmp_path)}
    a, b = measure_scaling(box, (1, 16), ("float32",), 1)
    assert b.picture_mb == pytest.approx(16 * a.picture_mb, rel=1e-4) and b.peak_mb - a.peak_mb > 1.9 * (b.picture_mb - a.picture_mb)
    broken = tmp_path/"box.onnx"; broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(DataError, match="box"): measure_scaling(box, (1,), ("uint8",), 1)


def command(*args): return subprocess.run([sys.executable, "-c", "from agri_cae.benchmark.report import main; main()", *map(str, args)], capture_output=True, text=True)


def test_command(tmp_path, folder):
    done = command("--data", folder, "--pairs", folder/"none", "--out", tmp_path/"out", "--parts", "training,quality", "--conditions", "25", "--baselines", "opencv_bilateral", "--every", 2)
    assert done.returncode == 0 and "| fast: PSNR at sigma 25 |" in done.stdout, done.stderr
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["_bench.md", "bench.json", "bench_training.png"]
    assert [len(s["psnr"]) for s in json.loads((tmp_path/"out"/"bench.json").read_text())["quality"]] == [2] * len(Bench.load(tmp_path/"out"/"bench.json").quality)
    empty = tmp_path/"empty"; empty.mkdir()
    for wrong in (("--parts", "speed"), ("--models", "fast"), ("--data", empty, "--parts", "quality")):
        bad = command("--out", tmp_path/"out", *wrong)
        assert bad.returncode == 1 and "Traceback" not in bad.stderr and bad.stderr.strip(), wrong


def test_import_is_light():
    out = subprocess.run([sys.executable, "-c", "import sys, agri_cae.benchmark.report; print(sorted({m.split('.')[0] for m in sys.modules} & {'keras','tensorflow','matplotlib','skimage','onnx','openvino','mlflow'}))"], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
