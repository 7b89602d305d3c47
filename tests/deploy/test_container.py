"""The container, built by buildah from a Debian that debootstrap makes, and run without an engine: own mounts and
processes, a read-only root, nobody's user, process 1.

Needs root, buildah, debootstrap and a network for their packages; AGRI_CAE_ROOTFS names a folder that debootstrap made
before. AGRI_CAE_TRAIN_IMAGE=1 also builds the image that trains, which is large.
"""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from agri_cae.io.images import read_image, sample

ROOT, MB = Path(__file__).parents[2], 1e6
missing = [t for t in ("buildah", "debootstrap", "unshare") if not shutil.which(t)] + (
    ["root"] if not hasattr(os, "geteuid") or os.geteuid() else []
)
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")

ENTER = """set -e
root=$1 mode=$2 user=$3 volume=$4 kept=$5; shift 5
mount --bind "$root" "$root"; mount -o "remount,bind,$mode" "$root"
mount -t proc proc "$root/proc"; mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$kept" "$root$volume"
exec chroot --userspec="$user" --groups= "$root" env -i "$@"
"""

COUNT = "from agri_cae.monitoring.log import PredictionLog; print(PredictionLog().newest())"


def run(*cmd, **kw):
    return subprocess.run(
        list(map(str, cmd)), check=True, capture_output=True, text=True, **kw
    ).stdout.strip()


def size(folder):
    return sum(p.lstat().st_size for p in Path(folder).rglob("*") if not p.is_dir())


class Box:
    "What an engine does with an image: its environment, user, folder, command and volume, which outlives a container"

    def __init__(self, rootfs, config, base_size, kept):
        self.rootfs, self.config, self.base_size = Path(rootfs), config, base_size
        (self.volume,) = config["Volumes"]
        self.kept = kept
        kept.mkdir()
        kept.chmod((self.rootfs / self.volume.lstrip("/")).stat().st_mode)
        self.packages = next(self.rootfs.glob("opt/agri-cae/lib/python3*/site-packages"))

    def start(self, *argv, mode="ro", **env):
        given = [
            f"{k}={v}"
            for k, v in ({k: v for k, _, v in (e.partition("=") for e in self.config["Env"])} | env).items()
        ]
        return subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                ENTER,
                "sh",
                str(self.rootfs),
                mode,
                self.config["User"],
                self.volume,
                str(self.kept),
                "-C",
                self.config["WorkingDir"],
                *given,
                *argv,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv, **kw):
        p = self.start(*argv, **kw)
        out, err = p.communicate(timeout=300)
        return p.returncode, out, err


def make_base(work):
    rootfs = os.environ.get("AGRI_CAE_ROOTFS")
    if not rootfs:
        rootfs = work / "debian"
        run("debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", rootfs)
        shutil.rmtree(rootfs / "var/cache/apt/archives")
    c = run("buildah", "from", "scratch")
    run("buildah", "add", "-q", c, rootfs, "/")
    run("buildah", "commit", "-q", "--rm", c, "localhost/base")
    return size(rootfs)


def build_flags(work):
    "A machine whose packages come with a certificate of its own lends it to the build"
    flags, cert = (
        "--isolation chroot --network host",
        os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"),
    )
    if not cert:
        return flags
    (work / "pip.conf").write_text("[global]\ncert = /cert.pem\n")
    return f"{flags} -v {work / 'pip.conf'}:/etc/pip.conf:ro -v {cert}:/cert.pem:ro"


@pytest.fixture(scope="module")
def built():
    with tempfile.TemporaryDirectory(prefix="agri_cae-image-") as work, pytest.MonkeyPatch.context() as mp:
        work = Path(work)
        (work / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{work}/storage"\nrunroot = "{work}/run"\n'
        )
        mp.setenv("CONTAINERS_STORAGE_CONF", str(work / "storage.conf"))
        base_size = make_base(work)

        def build(target):
            tag = run(
                ROOT / "tools/image.sh",
                env=os.environ
                | dict(BUILDER="buildah", BASE="localhost/base", TARGET=target, FLAGS=build_flags(work)),
            ).splitlines()[-1]
            c = run("buildah", "from", tag)
            return Box(
                run("buildah", "mount", c),
                json.loads(run("buildah", "inspect", "--type", "image", tag))["Docker"]["config"],
                base_size,
                work / f"volume-{target}",
            )

        yield build
        for c in run("buildah", "containers", "-q").split():
            run("buildah", "rm", c)


@pytest.fixture(scope="module")
def box(built):
    return built("serve")


@pytest.fixture
def server(box):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    began, p = time.monotonic(), box.start(*box.config["Entrypoint"], *box.config["Cmd"], PORT=port)
    p.url, p.port = f"http://127.0.0.1:{port}", port
    try:
        while time.monotonic() - began < 300:
            assert p.poll() is None, p.communicate()
            try:
                urllib.request.urlopen(p.url + "/readyz", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        print(f"ready after {time.monotonic() - began:.2f} s")
        yield p
    finally:
        p.kill()
        p.communicate()


def process_one(p):
    return int(Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()[0])


def test_it_is_small_and_holds_no_training_stack(box):
    added = (size(box.rootfs) - box.base_size) / MB
    print(f"{added:.0f} MB without base")
    assert added < 450
    installed = {p.name.lower() for p in box.packages.iterdir()}
    assert (
        not installed & {"tensorflow", "keras", "mlflow", "pandas", "matplotlib", "pip", "setuptools"}
        and "agri_cae" in installed
    )
    assert not list(box.rootfs.glob("build/*")) and not list(
        box.rootfs.glob("opt/agri-cae/**/tests/deploy/test_container.py")
    )


def test_it_tells_what_it_is(box):
    labels = {k.removeprefix("org.opencontainers.image."): v for k, v in box.config["Labels"].items()}
    assert (
        labels["licenses"] == "Apache-2.0"
        and labels["version"]
        and len(labels["revision"]) >= 7
        and labels["created"] > "2020"
    )
    assert box.config["Healthcheck"]["Test"][0] == "CMD" and "8080/tcp" in box.config["ExposedPorts"]


def test_nobody_can_write_but_where_it_is_meant(box):
    _, out, err = box.run(
        "find",
        "/",
        "-xdev",
        "-writable",
        "-not",
        "-type",
        "l",
        "-not",
        "-path",
        "/dev/*",
        "-not",
        "-path",
        "/proc/*",
        mode="rw",
    )
    assert set(out.split()) <= {"/data", "/tmp", "/var/tmp", "/run/lock", box.volume}, (out, err)
    assert box.run("id", "-u")[1].strip() == "10001"
    for where, ok in (("/tmp/x", True), ("/data/x", False), ("/opt/agri-cae/x", False)):
        assert (box.run("touch", where)[0] == 0) is ok, where


def test_it_serves_is_healthy_and_stops(box, server):
    health = box.config["Healthcheck"]["Test"][1:]
    assert box.run(*health, PORT=server.port)[0] == 0
    photo = sample("field_camera")
    answer = urllib.request.urlopen(
        urllib.request.Request(
            server.url + "/v1/denoise", photo.read_bytes(), {"Content-Type": "image/jpeg"}
        ),
        timeout=120,
    )
    assert (
        answer.status == 200
        and read_image(io.BytesIO(answer.read())).data.shape == read_image(photo).data.shape
    )
    assert "\nUid:\t10001\t10001" in Path(f"/proc/{process_one(server)}/status").read_text()
    os.kill(process_one(server), signal.SIGTERM)
    assert server.wait(30) == 0
    assert box.config["Env"].count(f"AGRI_CAE_HOME={box.volume}") == 1
    rc, out, err = box.run("python", "-c", COUNT, mode="ro")
    assert (rc, out.strip()) == (0, "1"), err  # the next container finds what the last one logged
    assert box.run(*health, PORT=server.port)[0] == 1


def test_it_is_the_command_too(box):
    rc, _, err = box.run(*box.config["Entrypoint"], "denoise", "no such picture.jpg")
    assert rc and "no such picture.jpg" in err and "Traceback" not in err


@pytest.mark.skipif(
    not os.environ.get("AGRI_CAE_TRAIN_IMAGE"), reason="AGRI_CAE_TRAIN_IMAGE=1 builds the image that trains"
)
def test_the_other_image_trains(built):
    "As nobody, with a read-only root: the command's own training on the samples, in a notebook, with its runs in /tmp"
    box = built("train")
    print(f"{(size(box.rootfs) - box.base_size) / MB:.0f} MB without base")
    rc, out, err = box.run(
        *box.config["Entrypoint"],
        "train",
        "--set",
        "epochs=1",
        "--set",
        "steps_per_epoch=2",
        "--out",
        "/tmp/run",
        AGRI_CAE_HOME="/tmp/home",
    )
    assert rc == 0 and "/tmp/run/fast." in out, (out, err)
    rc, out, err = box.run(
        "python",
        "/opt/agri-cae/retrain.py",
        PICTURES="/tmp/pictures",
        MODELS="/tmp/models",
        AGRI_CAE_HOME="/tmp/home",
    )
    assert rc == 0 and "nothing to do" in out, (out, err)
