"""Processes that have TensorFlow, MLflow and Jupyter in memory already: forks of one that has imported them.

The imports take ten seconds of a processor, a fork takes none. A fork is a process of its own: it is killed and
signalled like one that was started, ends when its parent does, and starts its kernels in the same way."""
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import TimeoutExpired
from unittest import mock

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "keras", "mlflow.onnx", "mlflow.keras", "mlflow.sklearn", "optuna", "papermill", "nbconvert", "ipykernel.zmqshell",
    "matplotlib.pyplot", "sqlalchemy.dialects.sqlite", "alembic.command", "onnxruntime", "agri_cae.train",
    "agri_cae.search.sweep", "agri_cae.search.trainer", "agri_cae.lifecycle.retrain", "agri_cae.cli.main",
    "skimage.metrics", "matplotlib.backends.backend_agg", "mlflow.pyfunc", "preloaded",
])  # fmt: skip
MAIN = "from agri_cae.cli.main import main; main()"
INLINE = "module://matplotlib_inline.backend_inline"


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _begin(begun, argv, env, cwd, files):
    "What an exec does: a group, an environment, a folder, open files and arguments of its own"
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for fd, file in enumerate(files, 1):
        if file: os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), fd)
    sys.argv = argv
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begun.send(True)


def _code(code, *how):
    _begin(*how)
    run_in_forks()
    exec(code, {"__name__": "__main__"})


def _module(name, *how):
    import matplotlib
    _begin(*how)
    matplotlib.rcParams["backend"] = INLINE   # a kernel names it in its environment, before the import
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def start_server():
    "In the environment and with the folders of any test"
    here = Path(__file__).parent
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGRI_CAE")}
    path = os.pathsep.join([str(here.parent), str(here)])
    with mock.patch.dict(os.environ, env | {"PYTHONPATH": path}, clear=True):
        multiprocessing.forkserver.ensure_running()


class Fork:
    "Like a `subprocess.Popen`"
    stdin = stdout = stderr = None

    def __init__(self, run, what, args=(), env=None, cwd=None, files=(None, None), daemon=False):
        if multiprocessing.parent_process() is None: start_server()
        heard, begun = FORKS.Pipe(duplex=False)
        how = begun, ["-c", *map(str, args)], dict(os.environ if env is None else env), str(cwd or os.getcwd()), files
        self.process = FORKS.Process(target=run, args=(what, *how), daemon=daemon)
        self.process.start()
        begun.close()
        heard.recv()
        self.pid = self.process.pid

    @property
    def returncode(self): return self.process.exitcode

    def poll(self): return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None: raise TimeoutExpired("fork", timeout)
        return self.returncode

    def send_signal(self, number): os.kill(self.pid, number)
    def kill(self): self.send_signal(signal.SIGKILL)
    def terminate(self): self.send_signal(signal.SIGTERM)


def fork(code, *args, out=None, log=None, **kw):
    "Python code in a fork, with these arguments; what it prints goes to the ends of the files `out` and `log`"
    return Fork(_code, code, args, files=(out and str(out), log and str(log)), **kw)


def _launch(cmd, env=None, cwd=None, **kw):
    at = cmd.index("-m") + 1
    own = dict(os.environ if env is None else env, JPY_PARENT_PID=str(os.getpid()))
    return Fork(_module, cmd[at], cmd[at + 1:], own, cwd, daemon=True)


def forked_kernels():
    "In this context notebooks run in forks"
    return mock.patch("jupyter_client.provisioning.local_provisioner.launch_kernel", _launch)


def run_in_forks():
    "The notebooks of this process, itself a fork, run in forks from now on"
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None   # a fork has no server of its own
    forked_kernels().start()
