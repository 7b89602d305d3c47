"Two models side by side: slices that add up, what decides, drawn patterns against real files, and the command."
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("keras")
from commands import call
from tiny_model import box_model

from agri_cae.benchmark.compare import Comparison, compare_models
from agri_cae.benchmark.comparison import comparison_report, write_comparison
from agri_cae.benchmark.patterns import check_card, check_mesh, check_patterns, draw_mesh, missed_goals
from agri_cae.benchmark.photos import (
    DECIDING,
    Photo,
    folder_photos,
    load_models,
    validation_photos,
)
from agri_cae.benchmark.slices import gain_of, slices, worst_rows
from agri_cae.benchmark.verdict import ship_verdict
from agri_cae.config import ConfigError, DataConfig, DataError, ModelError
from agri_cae.evaluate import degrade
from agri_cae.io.images import from_float, read_image, sample
from agri_cae.measures.metrics import psnr
from agri_cae.serve import Denoiser

CASES = Path(__file__).resolve().parents[3]/"shared/cases/photo"
SOME = (2., 5., "clean")


def blur(x): return cv2.blur(x, (3, 3)).reshape(x.shape)
def smear(x): return cv2.blur(x, (9, 9)).reshape(x.shape)


@pytest.fixture(scope="module")
def photos():
    flower, trees = (read_image(sample(s)).pixels for s in ("field_camera", "airborne"))
    return [Photo("a", flower[100:164, 220:284], "flower", "camera", "in"),
            Photo("b", flower[0:64, 0:64], "leaf", "camera", "in"),
            Photo("c", trees[:64, :64], "trees", "air", "out"),
            Photo("d", trees[100:164, :64], "trees", "air", "wild")]


@pytest.fixture(scope="module")
def found(photos): return compare_models(dict(blur=blur, smear=smear, same=np.copy), photos, SOME, progress=False)


def test_same_noise_for_all_and_metrics_as_elsewhere(photos, found):
    for r in found.rows:
        if r.index >= len(photos): continue
        clean = photos[r.index].clean
        noisy = degrade(clean, r.condition if r.condition == "clean" else float(r.condition), r.index)
        assert r.psnr["blur"] == pytest.approx(min(99, psnr(blur(noisy), clean)), abs=1e-3)
        assert r.psnr["same"] == r.noisy
    assert compare_models(dict(blur=blur, smear=smear, same=np.copy), photos, SOME, progress=False) == found
    other = compare_models(dict(smear=smear, blur=blur), photos, SOME, seed=7, progress=False)
    assert other.rows[0].noisy != found.rows[0].noisy


def test_slices_add_up(found):
    for s in slices(found):
        rows = [r for r in found.rows if r.domain == s.domain]
        if s.kind == "whole": continue
        if s.kind == "noise": rows = [r for r in rows if ("clean" if r.clean else r.condition) == s.name]
        if s.kind in ("family", "collection"):
            rows = [r for r in rows if getattr(r, s.kind) == s.name and not r.clean]
        gains = [gain_of(r, found.models) for r in rows]
        assert s.gain == pytest.approx(np.mean(gains)) and s.worst == min(gains)
        assert s.low <= s.gain + 1e-9 and s.high >= s.gain - 1e-9 and s.pictures == len({r.index for r in rows})
    whole = {s.domain: s for s in slices(found) if s.kind == "whole"}
    families = [s.gain for s in slices(found) if (s.domain, s.kind) == ("in", "family")]
    assert len(families) == 2 and whole["in"].gain == pytest.approx(np.mean(families))
    assert set(whole) == {"in", "out", "wild", "drawn"}


def test_what_decides(photos, found):
    equal = compare_models(dict(same=np.copy, again=np.copy), photos, SOME, progress=False)
    assert ship_verdict(equal).ships is False                             # not worse is not better
    v = ship_verdict(found)
    by = {text.split(":")[0]: met for met, text in v.reasons}
    assert by[DECIDING["in"]] is True and by["pattern contrast"] is True
    def worse_where(lost):
        def row(r): return r.model_copy(update=dict(psnr=r.psnr | {"blur": r.psnr["blur"] - 50. * lost(r)}))
        return ship_verdict(found.model_copy(update=dict(rows=[row(r) for r in found.rows])))
    assert worse_where(lambda r: r.domain == "wild") == v                 # test pictures decide nothing
    assert not worse_where(lambda r: r.domain == "out").ships
    assert not worse_where(lambda r: r.domain == "drawn").ships
    assert not worse_where(lambda r: r.condition == "clean").ships
    assert worst_rows(found, 9)[0].domain != "wild" and len({r.index for r in worst_rows(found, 9)}) == 3


def test_a_users_pair_may_veto(tmp_path, photos):
    own = Photo("mine", photos[0].clean, "", "mine", "own", degrade(photos[0].clean, 25., 3))
    sees = compare_models(dict(smear=smear, blur=blur), [own], SOME, progress=False)
    assert [r.condition for r in sees.rows if r.domain == "own"] == ["paired"]
    assert "own pairs" in next(t for met, t in ship_verdict(sees).reasons if t.startswith("slices"))
    for k in ("clean", "noisy"):
        cv2.imwrite(str(tmp_path/f"x_{k}.png"), from_float(getattr(own, k), np.uint8)[..., ::-1])
    [read] = folder_photos(tmp_path, "own", side=48)
    assert read.noisy.shape == read.clean.shape == (48, 48, 3)
    assert np.abs(read.clean - own.clean[8:56, 8:56]).max() < .003
    (tmp_path/"x_noisy.png").unlink()
    with pytest.raises(DataError, match="holds no pairs"): folder_photos(tmp_path, "own")


def test_bands_other_than_three(photos):
    grey = [p._replace(clean=p.clean[..., :1]) for p in photos]
    one = compare_models(dict(blur=blur, smear=smear), grey, SOME, progress=False)
    assert not one.patterns and {r.domain for r in one.rows} == {"in", "out", "wild"}
    assert "Patterns" in comparison_report(one)


def test_saved_and_shown(tmp_path, photos, found):
    models = dict(blur=blur, smear=smear, same=np.copy)
    write_comparison(found, models, photos, tmp_path/"new"/"folder")
    assert Comparison.model_validate_json((tmp_path/"new/folder/compare.json").read_bytes()) == found
    text = (tmp_path/"new/folder/compare.md").read_text("utf-8")
    assert "wild (decides nothing)" in text and str(tmp_path) not in text and "| same |" in text
    names = sorted(p.name for p in (tmp_path/"new/folder").iterdir())
    assert names == ["compare.json", "compare.md", "compare_slices.png", "compare_worst.png"]


def test_bad_input(photos):
    with pytest.raises(ConfigError): compare_models(dict(a=blur), photos)
    with pytest.raises(DataError): compare_models(dict(a=blur, b=blur), [])
    with pytest.raises(ModelError, match="half on a"): compare_models(dict(half=lambda x: x[::2], b=blur), photos, SOME)
    with pytest.raises(ConfigError, match="fog"): compare_models(dict(a=blur, b=blur), photos, ("fog",))


def test_reference_is_the_shipped_model_of_its_kind(tmp_path):
    assert [*load_models(str(box_model(tmp_path)))] == ["box", "fast"]
    assert [*load_models("restore")] == ["restore", "restore again"]
    assert [*load_models("best", "base")] == ["best", "base"]


@pytest.mark.skipif(not CASES.is_dir(), reason="the case files are not here")
@pytest.mark.parametrize("name", ("fast", "base"))
def test_drawn_patterns_behave_like_those_of_the_cases(name):
    model = Denoiser.load(name)
    net, card = (read_image(CASES/f).data[..., :3] for f in ("neutral_mesh/net.png", "flat_card/card.png"))
    case = next(c for c in json.loads((CASES/"cases.json").read_text()) if c["name"] == "flat_card")
    boxes = next(c for c in case["checks"] if c["check"] == "patches_kept")["boxes"]
    real, drawn = check_mesh(net, model(net)) | check_card(card, model(card), boxes), check_patterns(model)
    assert drawn.contrast == pytest.approx(real["contrast"], abs=40)
    assert drawn.grey == pytest.approx(real["grey"], abs=20) and drawn.shift == pytest.approx(real["shift"], abs=1)
    assert (drawn.white < 100) == (real["white"] < 100)
    assert (missed_goals(drawn)["patches"] > 0) == (real["patches"] > 2)


def test_mesh_is_grey_on_whole_levels():
    mesh = draw_mesh()
    assert np.array_equal(from_float(mesh, np.uint8) / np.float32(255), mesh)
    assert (mesh == mesh[..., :1]).all() and mesh.shape == (160, 192, 3)
    assert np.array_equal(mesh[::2, :48:2], np.broadcast_to(mesh[0, 0], (80, 24, 3)))
    assert mesh[0, 0, 0] != mesh[0, 1, 0]


@pytest.fixture
def folder(tmp_path):
    data, rows = tmp_path/"data", ["file,source,collection,tag"]
    data.mkdir()
    for name, collection in (("field_camera", "camera"), ("airborne", "air")):
        x = from_float(read_image(sample(name)).pixels, np.uint8)[..., ::-1]
        for i in range(4):
            top, left = (i // 2) * 130, (i % 2) * 130
            cv2.imwrite(str(data/f"{collection}{i}.png"), x[top:top + 128, left:left + 128])
            rows.append(f"{collection}{i}.png,{collection} {i},{collection},{collection}-x")
    (data/"MANIFEST.csv").write_text("\n".join(rows))
    return data


def test_validation_photos(folder):
    cfg = DataConfig(folder=str(folder), val_collections=("air",), val_fraction=.5)
    held = validation_photos(cfg, count=3, side=64)
    assert {p.domain: p.collection for p in held} == {"in": "camera", "out": "air"}
    assert {p.clean.shape for p in held} == {(64, 64, 3)}
    assert [p.name for p in held] == [p.name for p in validation_photos(cfg, count=3, side=64)]
    assert {p.domain for p in validation_photos(DataConfig(folder=str(folder)))} == {"in"}


def test_command(tmp_path, folder, monkeypatch):
    (tmp_path/"run").mkdir()
    box_model(tmp_path/"run", name="fast")
    (tmp_path/"run.yaml").write_text(f"data:\n  folder: {folder}\n  val_collections: [air]\n  val_fraction: 0.3\n")
    (tmp_path/"tests").mkdir()
    cv2.imwrite(str(tmp_path/"tests/t.png"), cv2.imread(str(folder/"air0.png")))
    options = "--config", "run.yaml", "--beside", "tests", "--out", "out", "--json", "-q"
    monkeypatch.chdir(tmp_path)
    done = call("compare", "run/fast.onnx", *options, rc=1)
    told = json.loads(done.stdout)
    assert told["ships"] is False and {s["domain"] for s in told["slices"]} == {"in", "out", "tests", "drawn"}
    assert [*told["slices"][0]["psnr"]] == ["fast (run)", "fast"]
    assert "tests (decides nothing)" in (tmp_path/"out/compare.md").read_text("utf-8")
    for wrong, code in ((("run/fast.onnx",), 2), (("none.onnx", "--folder", folder), 2),
                        (("fast", "--folder", tmp_path/"nothing"), 1)):
        bad = call("compare", *wrong, rc=code)
        assert "Traceback" not in bad.stderr and bad.stderr.strip(), wrong


def test_import_is_light():
    heavy = "{'keras','tensorflow','matplotlib','skimage','onnx','openvino','mlflow'}"
    code = ("import sys, agri_cae.benchmark.comparison; "
            f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
