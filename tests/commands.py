"The `agri-cae` command, in a process of its own and in that of a test."
import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from agri_cae.cli.main import main
from agri_cae.io.images import Picture, write_image

ROOT = Path(__file__).parents[1]
RUN = [sys.executable, "-c", "from agri_cae.cli.main import main; main()"]


def env(**kw):
    return {**{k: v for k, v in os.environ.items() if not k.startswith("AGRI_CAE")}, "PYTHONPATH": str(ROOT), **kw}


def start(*args):
    "The command in a process of its own, which runs on"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*RUN, *map(str, args)], env=env(), **pipes)


def cli(*args, rc=0, text=True, **kw):
    "Run the command in a process of its own; its exit code must be `rc`"
    kw = {"env": env(), "capture_output": True, "timeout": 300} | kw
    done = subprocess.run([*RUN, *map(str, args)], text=text, errors="surrogateescape" if text else None, **kw)
    assert done.returncode == rc, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    return done


def on_terminal(*args, until=None):
    "The command on a terminal of 100 columns, stopped by Ctrl-C once it shows `until`: exit code, and all it showed"
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    pid, fd = pty.fork()
    if not pid:
        termios.tcsetwinsize(2, (30, 100))
        os.execve(RUN[0], [*RUN, *map(str, args)], env(TQDM_DISABLE="0", COLUMNS="100"))
    shown = ""
    with open(fd, "r+b", buffering=0) as terminal, suppress(OSError):  # it ends with an error, EIO
        while new := terminal.read(4096).decode(errors="replace"):
            shown += new
            if until and until in shown: until = terminal.write(b"\x03") and None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def in_process(*args):
    "The same in this process, which spares a second a run: exit code, standard output and error"
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=e, write_through=True)
        for e in ("strict", "backslashreplace")
    )
    with (
        mock.patch.object(sys, "argv", ["agri-cae", *map(str, args)]),
        mock.patch.object(signal, "signal"),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as e,
    ):
        main()
    return e.value.code or 0, *(f.buffer.getvalue().decode("utf-8", "surrogateescape") for f in (out, err))


def call(*args, rc=0):
    "Run the command in this process; its exit code must be `rc`"
    code, out, err = in_process(*args)
    assert code == rc, (code, out[-500:], err[-2000:])
    return SimpleNamespace(stdout=out, stderr=err)


def tree(folder):
    "Names of all files below a folder"
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file() or p.is_symlink())

def picture(path, side=20, seed=0, bands=3, dtype=np.uint8):
    "Write a picture of noise; gives its pixels"
    a = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (side, side + 3, bands), dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Picture(a), path, overwrite=True)
    return a
