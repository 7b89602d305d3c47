"Write README.md from nbs/index.ipynb: text, code, saved outputs; pictures go to nbs/images/. Usage: readme.py [folder]"

import base64
import re
import sys
from pathlib import Path

import nbformat


def output(o, name):
    "Markdown of one saved output; a picture is written to nbs/images/`name`"
    data = o.get("data", {})
    for kind in ("png", "jpeg"):
        if f"image/{kind}" in data:
            (pictures / f"{name}.{kind}").write_bytes(base64.b64decode(data[f"image/{kind}"]))
            return f"![](nbs/images/{name}.{kind})"
    if "text/markdown" in data:
        return data["text/markdown"]
    return "```\n" + (o.get("text") or data.get("text/plain", "")).strip("\n") + "\n```"


root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
pictures = root / "nbs/images"
pictures.mkdir(parents=True, exist_ok=True)
parts = ["<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->"]
for i, cell in enumerate(nbformat.read("nbs/index.ipynb", 4).cells):
    directives, source = (
        re.findall(r"^#\| *(.+)$", cell.source, re.M),
        re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip(),
    )
    if "hide" in directives or not source:
        continue
    if cell.cell_type == "markdown":
        parts.append(re.sub(r"\]\((?!\w+:|#)", "](nbs/", source))
    else:
        if "echo: false" not in directives:
            parts.append(f"```python\n{source}\n```")
        parts += [output(o, f"index_{i}_{j}") for j, o in enumerate(cell.outputs)]
(root / "README.md").write_text("\n\n".join(parts) + "\n", "utf-8")
