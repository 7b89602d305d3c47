"Build the documentation site into _docs/: with Quarto where it is installed, else with smalldocs, from the same processed notebooks."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import nbdev_docs, nbdev_sidebar
from nbdev.serve import proc_nbs


def as_quarto_names(proc):
    "Name the pages as Quarto does, config.html for 00_config.ipynb, and make links to them and to the own site relative"
    cfg = get_config()
    for f in [proc/"sidebar.yml", *proc.rglob("*.ipynb")]:
        text = re.sub(r"((?:\]\(|- )(?:[\w.]+/)*)\d+[a-zA-Z0-9]*_(?=\w+\.ipynb)", r"\1", f.read_text("utf-8"))
        text = text.replace(f"({cfg.doc_host}{cfg.doc_baseurl}/", "(" + "../" * len(f.parent.relative_to(proc).parts))
        f.unlink()
        f.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", f.name)).write_text(text, "utf-8")

if __name__ == "__main__":   # proc_nbs starts processes, which import this file
    # nbdev runs each cell that imports something, without the cells before it: such a cell may do nothing else
    os.environ["PYTHONWARNINGS"] = "error:Found cells containing imports"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"   # nothing is computed, and TensorFlow announces it at each start
    if shutil.which("quarto"): sys.exit(nbdev_docs())
    nbdev_sidebar()
    shutil.rmtree("_proc", ignore_errors=True)
    proc = proc_nbs()
    as_quarto_names(proc)
    run = subprocess.run([Path(sys.executable).parent/"smalldocs", "render", "--quiet", proc], stderr=subprocess.PIPE, text=True)
    wrong = [o for o in run.stderr.splitlines() if "output-file is not read" not in o]
    if run.returncode or wrong: sys.exit("\n".join(wrong) or f"smalldocs failed ({run.returncode})")
    shutil.rmtree("_docs", ignore_errors=True)
    shutil.move(proc/"_docs", "_docs")
    print(f"{len(list(Path('_docs').rglob('*.html')))} pages in _docs/: open _docs/index.html")
