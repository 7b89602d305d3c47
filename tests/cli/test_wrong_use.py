"Forty wrong uses: each gets one line that names the option or file, the right exit code, and costs no heavy import."

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, call, env, picture, tree

from agri_cae.io.images import read_image

RUNS = """
import contextlib, io, json, sys
from agri_cae.cli.main import main
found = []
for args in json.load(sys.stdin):
    said, out, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["agri-cae", *args]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try: main()
        except SystemExit as e: code = e.code
    found.append((code, said.getvalue(), out.getvalue()))
heavy = {"tensorflow", "keras", "mlflow", "onnxruntime"} & {m.split(".")[0] for m in sys.modules}
print(json.dumps([found, sorted(heavy)]))
"""

WRONG = [  # arguments, exit code, what the last line says
    ("denoise", 2, "Missing argument"),
    ("denoise gone.png", 2, "gone.png: does not exist"),
    ("denoise gone/*.jpg", 2, "gone/*.jpg: matches no file"),
    ("denoise empty", 1, "empty: holds no PNG, JPEG, TIFF or WebP file"),
    ("denoise a.png a.png", 2, "a.png: is itself an input"),
    ("denoise a.png b.png out.png", 2, "out.png: is no folder, but there are several inputs"),
    ("denoise a.png sub/a.png out", 2, "would be both a.png and sub/a.png"),
    ("denoise a.png gone.png out", 2, "gone.png: does not exist"),
    ("denoise sub a.png", 2, "a.png: is a file, but the input is a folder"),
    ("denoise sub -", 2, "-: standard output takes one picture, not a folder"),
    ("denoise a.png b.png", 1, "b.png: exists already"),
    ("denoise a.png --strength 50%", 2, "--strength: '50%' is no number from 0 to 1, nor auto"),
    ("denoise a.png --strength 2", 2, "--strength: '2' is no number from 0 to 1, nor auto"),
    ("denoise a.png --tile 7", 2, "--tile: input should be a multiple of 8, got 7"),
    ("denoise a.png --tile x", 2, "'--tile'"),
    ("denoise a.png --ensemble 9", 2, "--ensemble: "),
    ("denoise a.png --engine torch", 2, "--engine: "),
    ("denoise a.png --precision half", 2, "--precision: "),
    ("denoise a.png --threads -1", 2, "--threads: "),
    ("denoise a.png --range 5 1", 2, "--range: "),
    ("denoise a.png --range 1 x", 2, "'--range'"),
    ("denoise a.png --model fats --dry-run", 2, "fats: is no model"),
    ("denoise a.png --sigma 3", 2, "No such option"),
    ("denois a.png", 2, "No such command"),
    ("estimate gone.png", 1, "gone.png"),
    ("estimate empty", 1, "empty: holds no PNG, JPEG, TIFF or WebP file"),
    ("estimate a.png --range 5 1", 2, "--range: "),
    ("train --set epoch=3", 2, "unknown key 'epoch'"),
    ("train --set epochs", 2, "--set epochs: is not of the form key=value"),
    ("train --set epochs=[", 2, "--set: is not a value"),
    ("train --set lr=fast", 2, "lr: "),
    ("train --set folder=gone", 2, "gone: is not a folder"),
    ("train --set recipe=fog", 2, "recipe fog: is unknown. Choose one of none, gaussian"),
    ("train --set preset=huge", 2, "preset: "),
    ("train --config gone.yaml", 2, "gone.yaml"),
    ("train --config a.png", 2, "a.png"),
    ("train --run sub", 2, "--run: is of use with --decay only"),
    ("evaluate gone", 2, "gone: is not a folder"),
    ("evaluate --sigmas x", 2, "--sigmas: 'x' is not a list of numbers"),
    ("evaluate --model nix", 2, "nix: is no model"),
    ("data check gone", 2, "gone: is not a folder"),
    ("monitor profile gone", 2, "gone: is not a folder"),
    ("monitor learn --db gone.db", 2, "gone.db: is not there: no service has logged predictions yet"),
    ("key a:b", 2, "a:b: is no name of a key"),
]


@pytest.fixture
def place(here):
    for name in ("a.png", "b.png", "sub/a.png"): picture(here / name)
    (here / "empty").mkdir()
    return here


def test_forty_wrong_uses(place):
    asked = [args.split() for args, *_ in WRONG]
    assert len(asked) >= 40
    done = subprocess.run([sys.executable, "-c", RUNS], input=json.dumps(asked), capture_output=True, text=True,
                          env=env(PYTHONPATH=str(ROOT)), timeout=300)
    assert done.returncode == 0, done.stderr
    found, heavy = json.loads(done.stdout)
    wrong = []
    for (args, code, says), (got, said, out) in zip(WRONG, found, strict=True):
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        usage = said.startswith("Usage")
        if got != code or says not in said or out or "Traceback" in said or len(errors) + usage != 1:
            wrong.append((args, got, said, out))
    assert not wrong
    assert not heavy and tree(place) == ["a.png", "b.png", "sub/a.png"]


def test_several_inputs_and_wildcards(place, model):
    call("denoise", "a.png", "b.png", "clean/", "--model", model)
    call("denoise", "*.png", "wild", "--model", model)
    assert tree(place / "clean") == tree(place / "wild") == ["a.png", "b.png"]
    assert (read_image("clean/b.png").data == read_image("wild/b.png").data).all()
    call("denoise", "sub", "a.png", "both", "--model", model, rc=2)  # sub/a.png and a.png
    call("denoise", "a.png", "b.png", "--in-place", "--model", model)
    assert (read_image("b.png").data == read_image("wild/b.png").data).all()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("paths", ["a.png b.png", "sub other", "a.png b.png other", "sub/a.png other"])
def test_an_original_is_no_output(place, model, paths, more):
    "What a shell makes of a wildcard when the output was forgotten: no picture that is no result is replaced"
    picture(place / "other/a.png", seed=9)
    picture(place / "b.png", seed=7)
    before = {p: (place / p).read_bytes() for p in tree(place)}
    if paths == "a.png b.png other": picture(place / "other/of_another_camera.png", seed=8)
    said = call("denoise", *paths.split(), "--model", model, *more, rc=2).stderr
    assert "no run of agri-cae made" in said and "The last path is the output" in said
    assert {p: (place / p).read_bytes() for p in before} == before


def test_results_are_replaced_and_copies_too(place, model):
    for _ in range(2): call("denoise", "a.png", "b.png", "clean", "--model", model, "--overwrite")
    (place / "copies").mkdir()
    (place / "copies/a.png").write_bytes((place / "a.png").read_bytes())
    assert "1 skipped" in call("denoise", "a.png", "b.png", "copies", "--model", model).stderr
    assert json.loads(call("denoise", "a.png", "clean/a.png", "--json", rc=1).stdout)["status"] == "skipped"


def test_a_dry_run_knows_what_was_denoised_before(place, model):
    call("denoise", "a.png", "--model", model)
    done = call("denoise", ".", "next", "--model", model, "--dry-run", "--json")
    status = {r["source"]: r["status"] for r in map(json.loads, done.stdout.splitlines())}
    assert status == {"a.png": "planned", "b.png": "planned", "sub/a.png": "planned", "a_denoised.png": "skipped"}
    assert "3 to be denoised, 1 to be skipped" in done.stderr


def test_endings_and_numbers_that_mean_nothing(place, model):
    for wrong in ("x.heic", "x.xyz"):
        assert "pictures are not written as" in call("denoise", "a.png", wrong, "--model", model, rc=1).stderr
        assert not (place / wrong).exists()
    assert "Name it x.png" in call("denoise", "a.png", "x.gif", "--model", model, rc=2).stderr
    assert "--ensemble" in call("denoise", "a.png", "x.png", "--ensemble", "3", rc=2).stderr
    assert "--precision" in call("denoise", "a.png", "x.png", "--precision", "bfloat16", rc=2).stderr
    assert "--in-place takes no output" in call("denoise", "--in-place", "a.png", "x.png", rc=2).stderr
    assert "Usage" in call("denoise", "-h").stdout


def test_estimate_takes_several(place):
    assert len(call("estimate", "a.png", "*.png", "sub").stdout.splitlines()) == 4


def test_results_beside_the_sources_are_no_errors_in_the_next_run(place, model):
    call("denoise", "a.png", "--model", model)
    done = call("denoise", ".", "next", "--model", model, "--json")
    status = {r["source"]: r["status"] for r in map(json.loads, done.stdout.splitlines())}
    assert status == {"a.png": "done", "b.png": "done", "sub/a.png": "done", "a_denoised.png": "skipped"}
    assert "ERROR" not in done.stderr
    assert "denoised" in call("denoise", "a_denoised.png", "again.png", "--model", model, rc=1).stderr


def test_quiet_says_nothing_but_errors(place, model):
    done = call("denoise", "sub", "--model", model, "-q")
    assert done.stdout == done.stderr == ""
    assert json.loads(call("denoise", "a.png", "--model", model, "-q", "--json").stdout)["status"] == "done"


def test_the_help_of_train_lists_every_setting():
    from agri_cae.config import TrainConfig, flatten
    said = call("train", "--help").stdout
    missing = [name for name in flatten(TrainConfig()) if f"{name} <" not in said]
    assert not missing and "[default: 0.003]" in said and "peak learning rate" in said


def test_the_configuration_of_a_shipped_model_is_found_by_its_name(place):
    from agri_cae.cli.training import train_config
    assert train_config(Path("fast.yaml")).optimizer == "muon"


def test_one_file_is_one_file_however_it_is_written(place, model):
    "What is skipped in a folder is an error for a file that was named"
    call("denoise", "./a.png", "--model", model)
    assert "a_denoised.png: exists already" in call("denoise", f"{place}/a.png", "--model", model, rc=1).stderr
    assert "denoised" in call("denoise", "./a_denoised.png", "again.png", "--model", model, rc=1).stderr
