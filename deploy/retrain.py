"""One retraining in a job that keeps nothing itself: what is known of runs and versions comes from the bucket of pictures and goes back there, a new champion goes to the bucket of models.

A mounted bucket knows no locks, and SQLite needs them: runs and versions are on local disk while the job works, and one archive in the bucket. Arguments are those of `agri-cae retrain`.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path


def load_state(archive, home):
    "Runs and versions as the last job left them"
    home.mkdir(parents=True, exist_ok=True)
    if archive.exists():
        with tarfile.open(archive) as t: t.extractall(home, filter="data")

def save_state(home, archive):
    "All but the copies of pictures; the archive is replaced in one go"
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(archive.name + ".part")
    with tarfile.open(part, "w") as t: t.add(home, ".", filter=lambda i: None if Path(i.name).parts[:1] == ("retrain",) and {"data", "held_back"} & set(Path(i.name).parts[2:3]) else i)
    os.replace(part, archive)

def publish(weights, version, models):
    "Weights and card into a folder of their own, which never changes again; the card comes last"
    folder = models / f"{version}-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"
    if not (folder / "agri-cae.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".onnx", ".json"): shutil.copyfile(weights.with_suffix(suffix), folder / f"agri-cae{suffix}")
    return folder / "agri-cae.onnx"

def filled(folder): return folder.is_dir() and any(folder.iterdir())

def main(args):
    pictures, models, home = Path(os.environ["PICTURES"]), Path(os.environ["MODELS"]), Path(os.environ["AGRI_CAE_HOME"])
    archive = pictures / "state" / "home.tar"
    if not filled(pictures / "new"): print("nothing to do: there are no new pictures"); return 0
    load_state(archive, home)
    folders = [x for o in ("store", "test") if filled(pictures / o) for x in (f"--{o}", str(pictures / o))]
    done = subprocess.run([sys.executable, "-c", "from agri_cae.cli.main import main; main()", "retrain", str(pictures / "new"), *folders, "--json", *args], stdout=subprocess.PIPE, text=True)
    if done.returncode: return done.returncode
    print(done.stdout, end="")
    outcome = json.loads(done.stdout)
    if "folder" not in outcome: return 0   # too few pictures, or no alert
    report = Path(outcome["folder"])
    shutil.copytree(report, pictures / "reports" / report.name, ignore=lambda at, names: [n for n in names if not n.startswith("report.") and not n.endswith(".png")], dirs_exist_ok=True)
    save_state(home, archive)
    from agri_cae.lifecycle.registry import aliases
    from agri_cae.serve import model_path
    if version := aliases().get("champion"): print(f"the service takes the champion with MODEL={publish(model_path('models:/agri-cae@champion'), version, models)}")
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
