"""Field files that people reported, through each door: the command, Python and the service.

They lie beside the project; without them this is skipped."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import in_process
from inside import service

from agri_cae.config import AgriCaeError, ServeConfig
from agri_cae.modelfiles.card import shipped
from agri_cae.serve import Denoiser, denoise_file

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir() or "fast" not in shipped(), reason="no cases, or no weights")
FOLDERS = {"label_masks", "mixed_folder", "links"}


def named(kind):
    file = CASES / kind / "cases.json"
    return [pytest.param(c, id=c["name"]) for c in json.loads(file.read_text("utf-8"))] if file.is_file() else []


def checker(kind):
    spec = importlib.util.spec_from_file_location(f"check_{kind}", CASES / kind / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checks():
    pytest.importorskip("rasterio")
    return {kind: checker(kind) for kind in ("raster", "photo")}


@pytest.fixture(scope="module")
def client():
    with service("fast", serve=ServeConfig(model="fast", strength="auto")) as c:
        yield c


def asked(args):
    "(source, target, options) of a command line"
    files, options, args = [], {}, [*args]
    while args:
        word = args.pop(0)
        if word == "--range": options["value_range"] = float(args.pop(0)), float(args.pop(0))
        elif word == "--strength": options["strength"] = args.pop(0)
        elif word not in ("--json", "--in-place"): files.append(word)
    return files[0], files[-1], options


def by_python(args, client):
    "What the command does, in Python"
    src, dst, options = asked(args)
    strength = options.pop("strength", "auto")
    denoiser = Denoiser.load("fast", strength=strength if strength == "auto" else float(strength), **options)
    try:
        done = denoise_file(denoiser, src, dst, overwrite=src == dst)
    except AgriCaeError as e:
        return 1, "", f"ERROR {e}\n"
    return 0, json.dumps(done), "".join(f"WARNING {w}\n" for w in done.get("warnings", ()))


def by_service(args, client):
    "The same over HTTP"
    src, dst, options = asked(args)
    if span := options.pop("value_range", None): options["range"] = f"{span[0]},{span[1]}"
    head = {"Content-Type": "application/octet-stream"}
    answer = client.post("/v1/denoise", content=Path(src).read_bytes(), params=options, headers=head)
    if answer.is_error:
        return 1, "", f"ERROR {Path(src).name}: {answer.json()['detail']}\n"
    Path(dst).write_bytes(answer.content)
    told = {k.lower(): v for k, v in answer.headers.items()}
    done = dict(strength=float(told["x-strength"]), warnings=told.get("x-warnings", "").split("; "))
    if "x-noise-sigma" in told: done["sigma"] = float(told["x-noise-sigma"])
    if "x-left-as-it-is" in told: done["left"] = told["x-left-as-it-is"]
    return 0, json.dumps(done), "".join(f"WARNING {w}\n" for w in done["warnings"] if w)


def by_command(args, client): return in_process("denoise", *args)


DOORS = [by_command, by_python, by_service]


def through(door, client):
    "`subprocess` of a checker, whose `agri-cae denoise` goes through a door"
    def run(cmd, **kw):
        if Path(cmd[0]).name != "agri-cae": return subprocess.run(cmd, **kw)
        code, out, err = door(cmd[2:], client)
        if not kw.get("text"): out, err = out.encode(), err.encode()
        return subprocess.CompletedProcess(cmd, code, out, err)

    return SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", named("raster"))
def test_raster(case, door, checks, client, tmp_path, monkeypatch):
    if door is by_service and (case["files"] or "--in-place" in case["args"]): pytest.skip("one file a request")
    monkeypatch.setattr(checks["raster"], "subprocess", through(door, client))
    verdict, why, spoken = checks["raster"].run(case, CASES / "raster", tmp_path / "case", [])
    assert verdict == "right", (why, spoken)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", named("photo"))
def test_photo(case, door, checks, client, tmp_path, monkeypatch):
    if door is not by_command and case["name"] in FOLDERS: pytest.skip("one file a call")
    monkeypatch.setattr(checks["photo"], "subprocess", through(door, client))
    monkeypatch.setattr(checks["photo"], "TOOL", "agri-cae")
    verdict, why = checks["photo"].verdict(case, CASES / "photo" / case["name"], 60)
    assert verdict == "right", why
