"Two models of one name stay two: in names, and in what `evaluate` says of them."

import json

from commands import call
from tiny_model import box_model

from agri_cae.io.images import Picture, read_image, sample, write_image
from agri_cae.modelfiles.card import sha256
from agri_cae.modelfiles.names import model_names
from agri_cae.serve import Denoiser


def test_names_stay_apart():
    assert model_names(["runs/mine/base.onnx", "base"]) == ["base (runs/mine)", "base"]
    assert len(set(model_names(["a/m.onnx", "b/m.onnx", "m", "m"]))) == 4


def test_each_model_has_its_own_row(tmp_path):
    mine = box_model(tmp_path / "mine", name="fast")
    (tmp_path / "pictures").mkdir()
    write_image(Picture(read_image(sample("airborne")).data[:96, :96]), tmp_path / "pictures" / "a.png")
    asked = [x for m in ("fast", mine, mine) for x in ("--model", m)]
    report = json.loads(
        call("evaluate", tmp_path / "pictures", *asked, "--sigmas", 25, "--baselines", "", "--json", "-q").stdout
    )
    names = ["fast", f"fast ({tmp_path.as_posix()}/mine)"]
    assert [m["method"] for m in report["means"]] == ["noisy", *names]
    assert report["context"]["models"] == {names[0]: Denoiser.load("fast").digest, names[1]: sha256(mine)[:12]}
    scores = [m["psnr"] for m in report["means"]]
    assert len(set(scores)) == 3


def test_a_digest_is_that_of_the_file_which_runs(tmp_path):
    mine = box_model(tmp_path)
    assert Denoiser.load(mine).digest == sha256(mine)[:12]
    assert Denoiser.load("fast", engine="onnx").digest == Denoiser.load("fast").digest != ""
