"What deploys the service: files against their schemas, each other and the code; scripts against a played Google Cloud."

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from agri_cae.modelfiles.card import shipped

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
sys.path.insert(0, str(DEPLOY))
import cost
import retrain


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def terraform():
    return "\n".join(f.read_text("utf-8") for f in sorted((DEPLOY / "terraform").glob("*.tf")))


# ---- schemas. What Cloud Run reads of knative's Service and of its own Job, as far as it is used here:
# key -> type, list of one, or keys below
NAMED = {"name": str}
PROBE = {
    "httpGet": {"path": str, "port": int},
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
    "initialDelaySeconds": int,
}
CONTAINER = NAMED | {
    "image": str,
    "command": [str],
    "args": [str],
    "env": [NAMED | {"value": str}],
    "ports": [NAMED | {"containerPort": int}],
    "resources": {"limits": {"cpu": str, "memory": str}},
    "startupProbe": PROBE,
    "livenessProbe": PROBE,
    "volumeMounts": [NAMED | {"mountPath": str}],
}
POD = {
    "serviceAccountName": str,
    "timeoutSeconds": (int, str),
    "containers": [CONTAINER],
    "volumes": [
        NAMED
        | {
            "csi": {
                "driver": str,
                "readOnly": bool,
                "volumeAttributes": {"bucketName": str, "mountOptions": str},
            }
        }
    ],
}
META = NAMED | {"labels": dict, "annotations": dict}
TRAFFIC = {"revisionName": str, "percent": int, "tag": str}
SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": META,
    "spec": {
        "template": {"metadata": META, "spec": POD | {"containerConcurrency": int}},
        "traffic": [TRAFFIC],
    },
}
JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": META,
    "spec": {
        "template": {
            "metadata": META,
            "spec": {"parallelism": int, "taskCount": int, "template": {"spec": POD | {"maxRetries": int}}},
        }
    },
}
BUILD = {
    "substitutions": dict,
    "options": {"logging": str, "machineType": str, "dynamicSubstitutions": bool},
    "serviceAccount": str,
    "timeout": str,
    "steps": [{"id": str, "name": str, "entrypoint": str, "args": [str], "env": [str], "waitFor": [str]}],
}
ANNOTATIONS = {
    "run.googleapis.com/ingress",
    "autoscaling.knative.dev/minScale",
    "autoscaling.knative.dev/maxScale",
    "run.googleapis.com/execution-environment",
    "run.googleapis.com/startup-cpu-boost",
    "run.googleapis.com/cpu-throttling",
}


def differs(value, schema, at=""):
    "Where a document is not what its schema says"
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{at} is no mapping"]
        return [
            d
            for k, v in value.items()
            for d in (differs(v, schema[k], f"{at}.{k}") if k in schema else [f"{at}.{k} is unknown"])
        ]
    if isinstance(schema, list):
        return (
            [d for i, v in enumerate(value) for d in differs(v, schema[0], f"{at}[{i}]")]
            if isinstance(value, list)
            else [f"{at} is no list"]
        )
    if schema is dict:
        return [
            f"{at}.{k} is no text" for k, v in value.items() if not isinstance(v, str)
        ]  # labels, annotations and substitutions are texts, numbers too
    return (
        []
        if isinstance(value, schema) and not (isinstance(value, bool) and schema is int)
        else [f"{at} is {type(value).__name__}"]
    )


FILES = [
    ("service.yaml", SERVICE, "run", "Service"),
    ("retrain.yaml", JOB, "run", "Job"),
    ("cloudbuild.yaml", BUILD, "cloudbuild", "Build"),
]


@pytest.mark.parametrize("name, schema, api, kind", FILES, ids=[f[0] for f in FILES])
def test_the_files_are_what_cloud_run_and_cloud_build_read(name, schema, api, kind):
    document = load(name)
    assert differs(document, schema) == []
    assert set(re.findall(r"^ +([\w.]+/\w+):", (DEPLOY / name).read_text(), re.M)) <= ANNOTATIONS


def test_the_check_would_see_a_slip():
    document = load("service.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    document["metadata"]["annotations"]["autoscaling.knative.dev/minScale"] = 0
    assert len(differs(document, SERVICE)) == 2


@pytest.mark.skipif(not shutil.which("gcloud"), reason="the schema of Google's own client is not here")
@pytest.mark.parametrize("name, schema, api, kind", FILES, ids=[f[0] for f in FILES])
def test_googles_own_client_knows_each_field(name, schema, api, kind):
    code = f"""if True:
        import sys, json; sys.path += sys.argv[1:]
        from apitools.base.py import encoding
        from googlecloudsdk.generated_clients.apis.{api}.v1 import {api}_v1_messages as m
        message = encoding.DictToMessage(json.load(sys.stdin), m.{kind})
        print(json.dumps([str(f) for f in encoding.UnrecognizedFieldIter(message)]))"""
    lib = Path(shutil.which("gcloud")).resolve().parents[1] / "lib"

    def unknown(document):
        return subprocess.run(
            [sys.executable, "-c", code, str(lib), str(lib / "third_party")],
            input=json.dumps(document),
            capture_output=True,
            text=True,
        )

    done = unknown(load(name))
    if done.returncode:
        pytest.skip(f"Google's client does not run: {done.stderr.strip().splitlines()[-1]}")
    assert json.loads(done.stdout) == [] and json.loads(unknown(load(name) | {"spek": 1}).stdout)


# ---- the files against the code
def test_the_service_file_fits_the_service():
    pytest.importorskip("fastapi")
    from agri_cae.api.app import create_app
    from agri_cae.api.settings import ApiSettings

    spec = load("service.yaml")["spec"]["template"]["spec"]
    box, paths = spec["containers"][0], create_app(ApiSettings(monitor=False)).openapi()["paths"]
    assert {box[p]["httpGet"]["path"] for p in ("startupProbe", "livenessProbe")} <= set(
        paths
    ) and "/v1/denoise" in paths
    env = {e["name"]: e["value"] for e in box["env"]}
    assert all(n.removeprefix("AGRI_CAE_").lower().split("__")[0] in ApiSettings.model_fields for n in env)
    assert spec["timeoutSeconds"] > float(env["AGRI_CAE_DEADLINE"])
    assert (
        spec["containerConcurrency"] <= ApiSettings().queue_requests
        and int(env["AGRI_CAE_QUEUE_PIXELS"]) >= ApiSettings().upload_pixels
    )


def test_terraform_makes_what_the_files_name():
    tf, used = (
        terraform(),
        "".join((DEPLOY / f).read_text() for f in ("service.yaml", "retrain.yaml", "cloudbuild.yaml")),
    )
    accounts = {"serve", "retrain", "schedule", "build"}
    assert set(re.findall(r"agri-cae-(\w+)@", used)) <= accounts and all(
        re.search(rf"^    {a} += \"", tf, re.M) for a in accounts
    )
    assert set(re.findall(r"PROJECT-agri-cae-(\w+)", used)) == {"models", "pictures"}
    assert re.search(r"for_each += \{ models = true, pictures = true, source = false \}", tf)
    assert load("retrain.yaml")["metadata"]["name"] in re.findall(r'name += "([\w-]+)"', tf)


def test_rights_are_narrow():
    assert not re.search(r"roles/(owner|editor|.*admin)", terraform(), re.I) and "allUsers" not in terraform()
    on_project = re.search(r'google_project_iam_member" "build" \{\s+for_each = toset\((.*?)\)', terraform())[
        1
    ]
    assert set(json.loads(on_project)) == {
        "logging.logWriter",
        "logging.viewer",
        "run.developer",
        "run.invoker",
    }


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_terraform_reads_its_files():
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-no-color", str(DEPLOY / "terraform")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pipeline_hangs_together():
    build, text = load("cloudbuild.yaml"), (DEPLOY / "cloudbuild.yaml").read_text()
    seen = {"-"}
    for step in build["steps"]:
        assert set(step.get("waitFor", [])) <= seen
        seen.add(step["id"])
    used = set(re.findall(r"(?<!\$)\$\{?(\w+)", text)) - {"$"}
    assert used <= set(build["substitutions"]) | {"PROJECT_ID", "BUILD_ID", "COMMIT_SHA"}
    assert set(build["substitutions"]) <= used, "a substitution that nobody reads is an error in Cloud Build"


def test_locks_hold_hashes_and_no_addresses():
    versions = {}
    for f in sorted((ROOT / "requirements").glob("*.txt")):
        text = f.read_text("utf-8")
        entries = re.findall(
            r"^([\w.-]+)==(\S+)(?: ; .*?)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", text, re.M
        )
        assert entries and len(entries) == len(re.findall(r"^[^\s#]", text, re.M)), (
            f"{f.name}: an entry without a hash, or something else"
        )
        found = versions[f.stem] = {}
        for name, v in entries:
            found.setdefault(name, set()).add(v)
    base, serve, train, dev = (versions[o] for o in ("base", "serve", "train", "dev"))
    assert (
        not set(serve) & {"tensorflow", "tensorflow-cpu", "keras", "mlflow", "pandas", "matplotlib"}
        and set(base) <= set(serve) & set(train)
        and {"keras", "mlflow"} <= set(train)
    )
    assert not {n: v for o in (base, serve, train) for n, v in o.items() if n in dev and not v <= dev[n]}, (
        "another version than the one that is tested; run: make lock"
    )


# ---- the cost
def test_the_cost_is_reckoned_as_it_says():
    bench = dict(
        threads=2,
        machine="x",
        scaling=[
            dict(model="m", dtype="uint8", megapixels=16.0, seconds=8.0),
            dict(model="m", dtype="uint8", megapixels=1.0, seconds=9.0),
            dict(model="m", dtype="float32", megapixels=20.0, seconds=1.0),
        ],
    )
    prices = dict(
        request_based=dict(vcpu_second=1e-5, gib_second=1e-6, million_requests=0.4),
        instance_based=dict(vcpu_second=2e-5, gib_second=0),
    )
    found = {v: (s, a, b) for _, v, _, s, a, b in cost.rows(bench, prices)}
    assert (
        found[2] == (500_000, pytest.approx(500_000 * 22e-6 + 0.02), pytest.approx(20))
        and found[8][0] == 125_000
    )


def test_the_cost_note_is_of_todays_numbers():
    assert (DEPLOY / "cost.md").read_text("utf-8") == cost.note(
        json.loads(cost.BENCH.read_text()), load("prices.yaml")
    ), "Run: make cost"


# ---- the rollout, against a gcloud and a curl that only remember
FAKE = {
    "gcloud": r"""#!/usr/bin/env bash
echo "gcloud $*" >> "$PLAY/calls"
case "$*" in
  "run services list"*) cat "$PLAY/list" ;;
  "run services describe"*) cat "$PLAY/now" ;;
  "run services replace"*)
    cp "$4" "$PLAY/service.yaml"
    [ ! -e "$PLAY/no_start" ] || exit 1
    revision=$(sed -n 's/^      name: //p' "$4")
    now=$NOW
    traffic='[{"revisionName": "NEW", "percent": 100}]'
    [ -s "$PLAY/list" ] || now='{"status": {"url": "https://first", "traffic": '"$traffic"'}}'
    echo "${now//NEW/$revision}" > "$PLAY/now" ;;
  "logging read"*) [ ! -e "$PLAY/errors" ] || echo 2026-01-01 ;;
  *print-identity-token*) echo token ;;
esac
""",
    "curl": r"""#!/usr/bin/env bash
echo "curl $*" >> "$PLAY/calls"
[ ! -e "$PLAY/broken" ] || exit 22
while [ $# -gt 0 ]; do [ "$1" != -o ] || echo picture > "$2"; shift; done
""",
}
MODEL = {"name": "AGRI_CAE_SERVE__MODEL", "value": "/models/7-3f2a91c0/agri-cae.onnx"}
OLD = json.dumps({
    "spec": {"template": {"spec": {"containers": [{"env": [MODEL]}]}}},
    "status": {
        "url": "https://s",
        "traffic": [{"revisionName": "agri-cae-odd", "percent": 1}, {"revisionName": "agri-cae-old", "percent": 99}],
    },
})
CANDIDATE = {"revisionName": "NEW", "tag": "candidate", "url": "https://candidate---s"}
NEW = json.dumps({
    "status": {"url": "https://s", "traffic": [{"revisionName": "agri-cae-old", "percent": 100}, CANDIDATE]}
})


@pytest.fixture
def roll(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in FAKE.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "calls").touch()

    def go(*marks, first=False, **env):
        (tmp_path / "list").write_text("" if first else "agri-cae\n")
        (tmp_path / "now").write_text(OLD)
        for m in marks:
            (tmp_path / m).touch()
        env = (
            dict(
                PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                PLAY=str(tmp_path),
                NOW=NEW,
                PROJECT="farm",
                REGION="europe-west1",
                IMAGE="r/serve:1",
                WATCH="0",
            )
            | env
        )
        done = subprocess.run(
            ["bash", str(DEPLOY / "rollout.sh")], env=env, capture_output=True, text=True, timeout=60
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        splits = [c.split("--to-revisions ")[1].split()[0] for c in calls if "update-traffic" in c]
        return done, calls, splits, yaml.safe_load((tmp_path / "service.yaml").read_text())

    return go


needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not here")


@needs_bash
def test_a_rollout_goes_through(roll):
    done, calls, splits, service = roll()
    assert done.returncode == 0, done.stderr
    name = service["spec"]["template"]["metadata"]["name"]
    assert splits == [f"{name}=10,agri-cae-old=90", f"{name}=100"] and re.fullmatch(
        r"agri-cae-\d{6}-\d{6}", name
    )
    assert service["spec"]["traffic"] == [
        dict(revisionName="agri-cae-old", percent=100),
        dict(revisionName=name, percent=0, tag="candidate"),
    ]
    assert differs(service, SERVICE) == [] and not re.search(
        r"\b(PROJECT|SERVICE|IMAGE|REVISION|MODEL)\b", yaml.safe_dump(service)
    )
    spec = service["spec"]["template"]["spec"]
    assert (
        spec["containers"][0]["image"] == "r/serve:1"
        and spec["serviceAccountName"] == "agri-cae-serve@farm.iam.gserviceaccount.com"
    )
    assert spec["containers"][0]["env"][0]["value"] == "/models/7-3f2a91c0/agri-cae.onnx", (
        "the model that is in use stays"
    )
    tried = [c for c in calls if c.startswith("curl")]
    assert (
        len(tried) == 1
        and tried[0].endswith("https://candidate---s/v1/denoise")
        and "Bearer token" in tried[0]
    )


@needs_bash
@pytest.mark.parametrize(
    "mark, splits", [("no_start", []), ("broken", []), ("errors", ["=10,agri-cae-old=90"])]
)
def test_what_fails_goes_back(roll, mark, splits):
    done, _, found, service = roll(mark)
    name = service["spec"]["template"]["metadata"]["name"]
    assert (
        done.returncode == 1
        and found == [name + s for s in splits] + ["agri-cae-old=100"]
        and "back on agri-cae-old" in done.stderr
    )


@needs_bash
def test_the_first_one_has_nothing_to_go_back_to(roll):
    done, calls, splits, service = roll(first=True)
    assert (
        done.returncode == 0
        and "traffic" not in service["spec"]
        and len(splits) == 1
        and splits[0].endswith("=100")
    ), done.stderr
    assert service["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] == "fast" in shipped()
    assert any("https://first/v1/denoise" in c for c in calls)
    done, _, splits, _ = roll("broken", first=True)
    assert done.returncode == 1 and "back" not in done.stderr


@needs_bash
def test_another_model_is_a_rollout_too(roll):
    _, _, _, service = roll(MODEL="/models/8-77b0c1de/agri-cae.onnx", CANARY="100")
    assert (
        service["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
        == "/models/8-77b0c1de/agri-cae.onnx"
    )


# ---- the retraining job
@pytest.fixture
def job(tmp_path, monkeypatch):
    "The job's folders, and an `agri-cae retrain` that is played"
    for k in ("pictures", "models", "home"):
        monkeypatch.setenv({"home": "AGRI_CAE_HOME"}.get(k, k.upper()), str(tmp_path / k))
        (tmp_path / k).mkdir()

    def go(outcome, rc=0, args=()):
        seen = []

        def play(cmd, **kw):
            seen.append(cmd)
            folder = tmp_path / "home/retrain/1"
            (folder / "data").mkdir(parents=True, exist_ok=True)
            for f in ("report.md", "report.json", "most_gained.png", "data/big.png", "train.log"):
                (folder / f).write_text(f)
            return subprocess.CompletedProcess(
                cmd, rc, json.dumps(outcome | ({"folder": str(folder)} if "version" in outcome else {}))
            )

        monkeypatch.setattr(retrain.subprocess, "run", play)
        return retrain.main(list(args)), seen

    return tmp_path, go


def test_without_new_pictures_nothing_starts(job):
    _, go = job
    assert go({}) == (0, [])


def test_state_comes_and_goes_and_the_champion_is_published(job, monkeypatch):
    at, go = job
    for k in ("new", "store", "state"):
        (at / "pictures" / k).mkdir()
    (at / "pictures/new/a.png").touch()
    (at / "pictures/store/b.png").touch()
    (at / "before").mkdir()
    (at / "before/mlflow.db").write_text("runs")
    retrain.save_state(at / "before", at / "pictures/state/home.tar")
    (at / "champion.onnx").write_text("weights")
    (at / "champion.json").write_text("card")
    registry, serve = (
        pytest.importorskip("agri_cae.lifecycle.registry", exc_type=ImportError),
        importlib.import_module("agri_cae.serve"),
    )
    monkeypatch.setattr(registry, "aliases", lambda: {"champion": "7"})
    monkeypatch.setattr(serve, "model_path", lambda uri: at / "champion.onnx")
    rc, (cmd,) = go(dict(promoted=True, version="7"), args=["--set", "minutes=1"])
    assert rc == 0 and cmd[3:] == [
        "retrain",
        f"{at}/pictures/new",
        "--store",
        f"{at}/pictures/store",
        "--json",
        "--set",
        "minutes=1",
    ], "an empty test folder is not named"
    assert (at / "home/mlflow.db").read_text() == "runs"
    assert [
        (p.name, p.read_text())
        for p in sorted((at / "models" / f"7-{hashlib.sha256(b'weights').hexdigest()[:8]}").iterdir())
    ] == [("agri-cae.json", "card"), ("agri-cae.onnx", "weights")]
    assert sorted(p.name for p in (at / "pictures/reports/1").iterdir() if p.is_file()) == [
        "most_gained.png",
        "report.json",
        "report.md",
    ]
    with tarfile.open(at / "pictures/state/home.tar") as t:
        names = {n.removeprefix("./") for n in t.getnames()}
    assert {"mlflow.db", "retrain/1/report.json", "retrain/1/train.log"} <= names and not any(
        "data" in n for n in names
    )


@pytest.mark.parametrize(
    "outcome, rc",
    [(dict(promoted=False, reason="holds 1 of 20 pictures"), 0), (dict(promoted=True, version="8"), 3)],
)
def test_what_was_not_done_changes_nothing(job, outcome, rc):
    at, go = job
    (at / "pictures/new").mkdir()
    (at / "pictures/new/a.png").touch()
    assert (
        go(outcome, rc)[0] == rc
        and not list((at / "models").iterdir())
        and not (at / "pictures/state").exists()
    )
