"""One retraining in a job that keeps nothing itself. Arguments are those of `agri-cae retrain`.

Runs and versions come from the bucket of pictures and go back there. A new champion goes to the bucket of models.
A mounted bucket knows no locks, and SQLite needs them: while the job works, runs and versions are on local disk.
In the bucket they are one archive.
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
        with tarfile.open(archive) as t:
            t.extractall(home, filter="data")


def save_state(home, archive):
    "All but the copies of pictures; the archive is replaced in one go"
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(archive.name + ".part")
    with tarfile.open(part, "w") as t:
        t.add(home, ".", filter=lambda entry: None if is_copy(entry.name) else entry)
    os.replace(part, archive)


def is_copy(name):
    "Is this in retrain/RUN/data or retrain/RUN/held_back?"
    parts = Path(name).parts
    return parts[:1] == ("retrain",) and parts[2:3] in (("data",), ("held_back",))


def publish(weights, version, models):
    "Weights and card into a folder of their own, which never changes again; the card comes last"
    folder = models / f"{version}-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"
    if not (folder / "agri-cae.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".onnx", ".json"):
            shutil.copyfile(weights.with_suffix(suffix), folder / f"agri-cae{suffix}")
    return folder / "agri-cae.onnx"


def filled(folder):
    return folder.is_dir() and any(folder.iterdir())


def retrained(pictures, args):
    "The finished command; test and store are named where they hold something"
    folders = [x for name in ("store", "test") if filled(pictures / name) for x in (f"--{name}", str(pictures / name))]
    command = [sys.executable, "-c", "from agri_cae.cli.main import main; main()", "retrain", str(pictures / "new")]
    return subprocess.run([*command, *folders, "--json", *args], stdout=subprocess.PIPE, text=True)


def keep_report(report, folder):
    "Text and pictures of a report, without the training run"

    def left_out(_, names):
        return [n for n in names if not n.startswith("report.") and not n.endswith(".png")]

    shutil.copytree(report, folder / report.name, ignore=left_out, dirs_exist_ok=True)


def main(args):
    pictures, models, home = (Path(os.environ[name]) for name in ("PICTURES", "MODELS", "AGRI_CAE_HOME"))
    archive = pictures / "state" / "home.tar"
    if not filled(pictures / "new"):
        print("nothing to do: there are no new pictures")
        return 0
    load_state(archive, home)
    done = retrained(pictures, args)
    if done.returncode:
        return done.returncode
    print(done.stdout, end="")
    outcome = json.loads(done.stdout)
    if "folder" not in outcome:  # too few pictures, or no alert
        return 0
    keep_report(Path(outcome["folder"]), pictures / "reports")
    save_state(home, archive)

    from agri_cae.lifecycle.registry import aliases
    from agri_cae.serve import model_path

    version = aliases().get("champion")
    if version:
        published = publish(model_path("models:/agri-cae@champion"), version, models)
        print(f"the service takes the champion with MODEL={published}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
