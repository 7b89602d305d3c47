"Evaluation: what is measured, on odd input, and what is imported."
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from agri_cae.config import ConfigError, DataError, EvalConfig, ModelError, NoiseConfig, OutputError
from agri_cae.evaluate import degrade, evaluate, find_cases, plot_restored
from agri_cae.io.images import SAMPLES, read_image, sample, to_float
from agri_cae.measures.baselines import BASELINES, baseline
from agri_cae.measures.metrics import psnr
from agri_cae.measures.scores import Report, plot_report
from agri_cae.noise.awgn import awgn

FAST = EvalConfig(sigmas=(25.,), baselines=())
FREE = tuple(b for b in BASELINES if b != "bm3d")


@pytest.fixture(scope="module")
def flower(): return read_image(sample("field_camera")).pixels[100:260, 220:380]


@pytest.fixture(scope="module")
def trees(): return read_image(sample("airborne")).pixels[:300, :300]


def put(path, x, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.round(x * np.iinfo(dtype).max).astype(dtype)[..., ::-1])


# evaluation

def test_unknown_baseline_and_absent_bm3d():
    with pytest.raises(ConfigError, match="opencv_nlm"): baseline("opencv_nlms", 25)
    if find_spec("bm3d") is None:
        with pytest.raises(ConfigError, match="pip install bm3d"): evaluate({}, EvalConfig(baselines=("bm3d",)))


def test_the_perfect_denoiser(flower):
    r = evaluate({"oracle": lambda x: flower}, FAST, {"a": flower}).mean("oracle", 25)
    assert (r.mse, r.psnr, r.ssim, r.canopy_error, r.match_retention) == (0, None, 1, 0, 1) and r.s_per_mp > 0


def test_order_and_noise_of_a_folder(tmp_path, flower, trees):
    for name, x in dict(b=flower, a=trees, **{"sub/c": flower[:64]}).items(): put(tmp_path/f"{name}.png", x)
    cfg = EvalConfig(folder=str(tmp_path), baselines=(), noise_seed=5)
    report = evaluate({}, cfg, metrics=("psnr",))
    assert [r.image for r in report.rows[:3]] == ["a.png", "b.png", "sub/c.png"]
    clean = read_image(tmp_path/"b.png").pixels
    noise = np.random.default_rng(6).normal(0, 15 / 255, clean.shape).astype(np.float32)
    assert report.rows[1].psnr == pytest.approx(psnr(clean + noise, clean), abs=1e-9)
    assert report.mean("noisy", 15).psnr == pytest.approx(np.mean([r.psnr for r in report.rows[:3]]))
    assert report.mean("noisy", 15).ssim is None
    assert str(tmp_path) not in report.model_dump_json()
    assert evaluate({}, cfg, metrics=("psnr",)) == report
    put(tmp_path/"b.png", flower[::-1])
    assert evaluate({}, cfg, metrics=("psnr",)).context.digest != report.context.digest


def test_deep_and_grey_pictures(tmp_path, flower):
    put(tmp_path/"deep.png", flower, np.uint16)
    cv2.imwrite(str(tmp_path/"grey.png"), np.round(flower[..., 1] * 255).astype(np.uint8))
    report = evaluate({}, EvalConfig(folder=str(tmp_path), baselines=FREE, sigmas=(25,)))
    rows = {(r.image, r.method): r for r in report.rows}
    assert rows["deep.png", "noisy"].psnr == pytest.approx(psnr(awgn(flower, 25, 0), flower), abs=.05)
    assert rows["grey.png", "noisy"].canopy_error is None
    for name in FREE: assert rows["grey.png", name].psnr > rows["grey.png", "noisy"].psnr + 1.5
    assert report.mean("noisy", 25).canopy_error == rows["deep.png", "noisy"].canopy_error


@pytest.mark.parametrize("names", [("x/a_noisy.png", "x/a_clean.png"), ("noisy/a.png", "clean/a.png")])
def test_pairs(tmp_path, flower, names):
    noisy = awgn(flower, 25, 3).clip(0, 1)
    for name, x in zip(names, (noisy, flower), strict=True): put(tmp_path/name, x)
    report = evaluate({}, EvalConfig(folder=str(tmp_path), baselines=("opencv_bilateral",)))
    assert [m.condition for m in report.means] == ["paired"] * 2 and report.context.noise_seed is None
    assert report.mean("noisy", "paired").psnr == pytest.approx(psnr(noisy, flower), abs=.05)
    assert report.mean("opencv_bilateral", "paired").psnr > psnr(noisy, flower) + 3      # it was told a sensible sigma
    put(tmp_path/names[0], noisy[1:])
    with pytest.raises(DataError, match="a"): evaluate({}, EvalConfig(folder=str(tmp_path), baselines=()))
    (tmp_path/names[1]).unlink()
    with pytest.raises(DataError, match="pair"): evaluate({}, EvalConfig(folder=str(tmp_path), baselines=()))


def test_named_conditions_are_the_layers_of_training(flower):
    recipes, noise = pytest.importorskip("agri_cae.noise.recipes"), pytest.importorskip("agri_cae.noise.degradations")
    optics = pytest.importorskip("agri_cae.noise.optics")
    x = flower[:64, :64]
    for name in recipes.RECIPES:
        layer = recipes.make_recipe(NoiseConfig(recipe=name), 10)
        assert np.array_equal(degrade(x, name, 3, 7), np.asarray(layer(x[None])[0])), name
    expected = noise.Gaussian(5, seed=11)(optics.MotionBlur(9, seed=10)(x[None]))[0]
    assert np.array_equal(degrade(x, "motion9", 3, 7), np.asarray(expected))


def test_a_baseline_is_told_the_true_level_times_its_factor(tmp_path, flower):
    pytest.importorskip("keras")
    for name in "ab": put(tmp_path/f"{name}.png", flower[:64, :64])
    x = read_image(tmp_path/"b.png").pixels
    noisy = degrade(x, "sensor", 1)
    rms = 255 * float(np.sqrt(np.mean((noisy - x).astype(np.float64)**2)))
    for factor in (1, .5):
        factors = {"opencv_bilateral": {"sensor": factor}} if factor != 1 else {}
        cfg = EvalConfig(folder=str(tmp_path), sigmas=(25.,), recipes=("sensor",), baselines=("opencv_bilateral",),
                         sigma_factors=factors)
        report = evaluate({}, cfg, metrics=("psnr",))
        wanted = "b.png", "sensor", "opencv_bilateral"
        row = next(r for r in report.rows if (r.image, r.condition, r.method) == wanted)
        assert row.psnr == pytest.approx(psnr(baseline("opencv_bilateral", factor * rms)(noisy), x), abs=1e-6)
        white = [psnr(baseline("opencv_bilateral", 25)(awgn(x, 25, i)), x) for i in (0, 1)]
        assert report.mean("opencv_bilateral", 25).psnr == pytest.approx(np.mean(white), abs=1e-6)
        assert report.context.sigma_factors == cfg.sigma_factors and "degrade" in report.context.protocol
        assert Report.model_validate_json(report.model_dump_json()) == report and "| sensor | noisy |" in report.table()


def test_a_clean_picture(flower):
    cfg = EvalConfig(sigmas=(), recipes=("clean",), baselines=("opencv_nlm", "opencv_bilateral"))
    report = evaluate({"same": lambda x: x, "darker": lambda x: x - np.float32(.01)}, cfg, {"a": flower})
    for name in ("noisy", "opencv_nlm", "opencv_bilateral", "same"):
        m = report.mean(name, "clean")
        assert (m.psnr, m.mse, m.ssim, m.canopy_error, m.match_retention) == (None, 0, 1, 0, 1)
    assert report.mean("darker", "clean").psnr == pytest.approx(40, abs=.4)


def test_every_second_picture_keeps_its_noise(tmp_path, flower):
    for i in range(3): put(tmp_path/f"{i}.png", np.roll(flower, 9 * i, 0))
    cfg = EvalConfig(folder=str(tmp_path), sigmas=(25.,), baselines=())
    whole, some = (evaluate({}, cfg.model_copy(update=dict(every=n)), metrics=("psnr",)) for n in (1, 2))
    assert some.rows == [r for r in whole.rows if r.image != "1.png"] and some.context.images == 2


def test_unknown_conditions(flower):
    foggy = EvalConfig(recipes=("fog",), baselines=())
    with pytest.raises(ConfigError, match="fog"): evaluate({}, foggy, {"a": flower})
    with pytest.raises(ConfigError, match="neither"): EvalConfig(sigmas=())


def test_a_stray_file_among_pairs(tmp_path, flower):
    for name in ("a_noisy", "a_clean", "b"): put(tmp_path/f"{name}.png", flower)
    with pytest.raises(DataError, match=r"no partner: b\.png"): find_cases(EvalConfig(folder=str(tmp_path)))
    (tmp_path/"a_clean.png").unlink()                                        # a noisy picture never counts as clean
    with pytest.raises(DataError, match=r"no partner: a_noisy\.png"): find_cases(EvalConfig(folder=str(tmp_path)))


def test_the_samples_are_the_default():
    cases = find_cases(EvalConfig())
    assert [c.name for c in cases] == sorted(s.file for s in SAMPLES.values())
    report = evaluate({}, EvalConfig(sigmas=(25,), baselines=()), metrics=("psnr",))
    satellite = next(r for r in report.rows if "landsat" in r.image)
    x = to_float(read_image(sample("satellite")).data, (5000, 10000))
    assert satellite.psnr == pytest.approx(psnr(awgn(x, 25, 2), x), abs=1e-9)


def test_wrong_pictures_are_named(tmp_path, flower):
    put(tmp_path/"good.png", flower)
    whole = (tmp_path/"good.png").read_bytes()
    (tmp_path/"torn.png").write_bytes(whole[:len(whole) // 2])
    torn = EvalConfig(folder=str(tmp_path), baselines=(), sigmas=(25,))
    with pytest.raises(DataError, match=r"torn\.png"): evaluate({}, torn)
    with pytest.raises(DataError, match="nan"): evaluate({}, FAST, {"nan": np.full((32, 32, 3), np.nan, np.float32)})
    with pytest.raises(DataError, match="tiny"): evaluate({}, FAST, {"tiny": flower[:8, :8]})
    with pytest.raises(DataError, match="mixes"): evaluate({}, FAST, {"a": flower, "b": (flower, flower)})
    with pytest.raises(DataError): evaluate({}, FAST, {})
    with pytest.raises(DataError): evaluate({}, EvalConfig(folder=str(tmp_path/"none")))


def test_wrong_denoisers_are_named(flower):
    def broken(x): raise RuntimeError("no memory")
    wrong = ((broken, "no memory"), (lambda x: x[..., :1], "shape"), (lambda x: x * np.nan, "finite"),
             (lambda x: None, "shape"))
    for f, what in wrong:
        with pytest.raises(ModelError, match=f"(?s)mine on picture.*{what}"):
            evaluate({"mine": f}, FAST, {"picture": flower})
    with pytest.raises(ConfigError, match="opencv_nlm"): evaluate({"opencv_nlm": broken}, EvalConfig(), {"a": flower})
    with pytest.raises(ConfigError, match="lpips"): evaluate({}, FAST, {"a": flower}, metrics=("lpips",))


def test_every_method_gets_the_same_picture_after_one_warm_up(flower, trees):
    seen = []
    def spoil(x):
        seen.append(x.copy())
        x[:] = 0
        return x
    def keep(x):
        assert x.any()
        return x
    cfg = EvalConfig(sigmas=(15, 25), baselines=())
    report = evaluate({"spoil": spoil, "keep": keep}, cfg, {"a": flower, "b": trees})
    assert len(seen) == 1 + 4 and np.array_equal(seen[0], seen[1])
    for s in (15, 25): assert report.mean("keep", s).psnr == report.mean("noisy", s).psnr


def test_threads_are_set_and_given_back(flower):
    before, seen = cv2.getNumThreads(), []
    def look(x):
        seen.append(cv2.getNumThreads())
        return x
    report = evaluate({"look": look}, FAST, {"a": flower}, threads=1)
    assert report.context.threads == 1 and set(seen) == {1} and cv2.getNumThreads() == before
    with pytest.raises(ModelError): evaluate({"bad": lambda x: 1 / 0}, FAST, {"a": flower}, threads=1)
    assert cv2.getNumThreads() == before


# report and figures

def test_report_is_json_with_a_schema(tmp_path, flower):
    report = evaluate({"same": lambda x: x}, EvalConfig(sigmas=(0, 25), baselines=()), {"a": flower})
    report.save(tmp_path/"report.json")
    loaded = json.loads((tmp_path/"report.json").read_text("utf-8"))      # strict JSON: no NaN or Infinity
    assert loaded["schema_version"] == 1 and loaded["means"][0]["psnr"] is None
    assert Report.model_validate(loaded) == report
    pytest.importorskip("jsonschema").validate(loaded, Report.model_json_schema())
    lines = report.table().splitlines()
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1 and "| 25 | same |" in report.table()


def test_save_whole_or_not_at_all(tmp_path, flower):
    report = evaluate({}, FAST, {"a": flower}, metrics=("psnr",))
    (tmp_path/"folder").mkdir()
    for target in (tmp_path/"none"/"r.json", tmp_path/"folder"):
        with pytest.raises(OutputError): report.save(target)
    assert os.listdir(tmp_path) == ["folder"] and not os.listdir(tmp_path/"folder")


def test_figures(flower):
    pytest.importorskip("matplotlib")
    noisy = awgn(flower, 25, 0)
    fig = plot_restored(flower, noisy, {"bilateral": baseline("opencv_bilateral", 25)(noisy)}, zoom=(10, 20, 30, 40))
    titles = [t for ax in fig.axes if (t := ax.get_title())]
    assert len(titles) == 3 and f"{psnr(noisy, flower):.2f} dB" in titles[0]
    for images in ({"a": flower}, {"a": (noisy, flower)}):
        fig = plot_report(evaluate({"same": lambda x: x}, FAST, images))
        assert len(fig.axes) == 4 and fig.axes[0].get_title() == "PSNR dB"


# what is imported

def run(code): return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_is_light():
    heavy = "{'keras','tensorflow','matplotlib','skimage','mlflow','pywt','bm3d','torch','pandas'}"
    out = run(f"import sys, agri_cae.evaluate; print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))")
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_base_install_is_enough_for_psnr():
    out = run("""
import sys
for m in ("skimage", "matplotlib", "pywt", "keras"): sys.modules[m] = None
import numpy as np
from agri_cae.evaluate import *
from agri_cae.measures.metrics import ssim
from agri_cae.measures.scores import plot_report
from agri_cae.config import ConfigError, EvalConfig
x = {"a": np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)}
cfg = EvalConfig(baselines=("opencv_nlm", "opencv_bilateral"))
r = evaluate({}, cfg, x, metrics=("mse", "psnr", "canopy_error", "match_retention"))
assert r.mean("opencv_nlm", 25).psnr and "SSIM" not in r.table()
clean = evaluate({}, EvalConfig(recipes=("clean",), baselines=()), x, metrics=("mse",))
assert clean.mean("noisy", "clean").mse == 0
for f in (lambda: evaluate({}, EvalConfig(recipes=("sensor",)), x, metrics=("psnr",)),
          lambda: evaluate({}, EvalConfig(), x),
          lambda: evaluate({}, EvalConfig(baselines=("skimage_tv",)), x, metrics=("psnr",)),
          lambda: plot_report(r), lambda: plot_restored(x["a"], x["a"], {})):
    try: f()
    except ConfigError as e: assert "agri-cae[train]" in str(e), e
    else: raise SystemExit("no ConfigError")
print("fine")
""")
    assert out.stdout.strip() == "fine", out.stdout + out.stderr
