"Build the documentation site into _docs/, with Quarto where it is installed, else with smalldocs."

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from nbdev.config import get_config
from nbdev.quarto import nbdev_docs
from nbdev.serve import proc_nbs

# the rooms in the order of reading: title in the sidebar -> folder
ROOMS = {
    "Files": "io", "Noise": "noise", "Measures": "measures", "Training pictures": "curation",
    "Model files": "modelfiles", "Training": "fitting", "Tracking": "tracking", "Engines": "engines",
    "Search": "search", "Benchmark": "benchmark",
    "Monitoring": "monitoring", "Versions": "lifecycle", "Folders": "flights", "Service": "service", "Commands": "cli",
    "Pipelines": "pipelines", "Tutorials": "tutorials",
}  # fmt: skip


def sidebar(nbs):
    "The chapters, then the rooms, as Quarto and smalldocs want them; a room that is not listed is an error"

    def pages(folder):
        return [p.relative_to(nbs).as_posix() for p in sorted(folder.glob("*.ipynb"))]

    rooms = {p.parent.name for p in nbs.glob("*/*.ipynb") if p.parent.name[0] != "."}
    if other := rooms ^ set(ROOMS.values()):
        sys.exit(f"tools/docs.py lists other rooms than there are: {other}")
    chapters = ["index.ipynb", *(p for p in pages(nbs) if p != "index.ipynb")]
    return [*chapters, *({"section": title, "contents": pages(nbs / room)} for title, room in ROOMS.items())]


def folded(cell):
    "A cell under `code-fold` as HTML that opens on a click"
    code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
    return nbformat.v4.new_markdown_cell(
        f"<details><summary>Code</summary>\n\n```python\n{code}\n```\n\n</details>"
    )


def page(path, proc):
    "What only the site needs: where the names come from, folded cells, names of files without numbers"
    nb, cfg = nbformat.read(path, 4), get_config()
    module = next(
        (m[1] for c in nb.cells if (m := re.search(r"^#\| ?default_exp (\S+)", c.source, re.M))), None
    )

    def hidden(c):
        return re.search(r"^#\| ?code-fold: true", c.source, re.M) and not c.get("outputs")

    nb.cells = [folded(c) if hidden(c) else c for c in nb.cells]
    if module:
        line = f"```python\nfrom {cfg.lib_path.name}.{module} import *\n```"
        nb.cells.insert(1, nbformat.v4.new_markdown_cell(line))
    up = "../" * len(path.parent.relative_to(proc).parts)
    for c in nb.cells:
        c.source = unnumbered(c.source).replace(f"({cfg.doc_host}{cfg.doc_baseurl}/", f"({up}")
    path.unlink()
    nbformat.write(nb, path.with_name(re.sub(r"^\d+_", "", path.name)))


def unnumbered(text):
    "Links as Quarto writes them: config.ipynb for 00_config.ipynb"
    return re.sub(r"((?:\]\(|- )(?:[\w.]+/)*)\d+_(?=\w+\.ipynb)", r"\1", text)


def smalldocs(proc):
    "Render the processed notebooks; a warning is an error"
    for path in list(proc.rglob("*.ipynb")):
        page(path, proc)
    bar = proc / "sidebar.yml"
    bar.write_text(unnumbered(bar.read_text("utf-8")), "utf-8")
    command = [Path(sys.executable).parent / "smalldocs", "render", "--quiet", proc]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    wrong = [o for o in run.stderr.splitlines() if "output-file is not read" not in o]
    if run.returncode or wrong:
        sys.exit("\n".join(wrong) or f"smalldocs failed ({run.returncode})")
    shutil.rmtree("_docs", ignore_errors=True)
    shutil.move(proc / "_docs", "_docs")
    print(f"{len(list(Path('_docs').rglob('*.html')))} pages in _docs/: open _docs/index.html")


if __name__ == "__main__":  # proc_nbs starts processes, which import this file
    # nbdev runs each cell that imports something, without the cells before it: such a cell may do nothing else
    os.environ["PYTHONWARNINGS"] = "error:Found cells containing imports"
    contents = {"website": {"sidebar": {"contents": sidebar(Path("nbs"))}}}
    Path("nbs/sidebar.yml").write_text(yaml.safe_dump(contents, sort_keys=False), "utf-8")
    if shutil.which("quarto"):
        sys.exit(nbdev_docs())
    shutil.rmtree("_proc", ignore_errors=True)
    smalldocs(proc_nbs())
