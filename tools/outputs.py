"Fail when a saved output of a notebook holds what differs from machine to machine, or what no reader wants to see."

import re
import socket
import sys
from pathlib import Path

import nbformat

bad = {
    "a path of a machine": r"(?<![\w.:/])/(?:home|root|Users|tmp|var|opt|work|private|mnt|usr)/\S*"
    r"|\b[A-Z]:\\\w+|site-packages",
    "a host name": rf"\b{re.escape(socket.gethostname())}\b"
    if len(socket.gethostname()) > 4 and socket.gethostname() != "localhost"
    else r"(?!)",
    "a memory address": r"\b0x[0-9a-f]{7,}",
    "a progress bar or a time": r"\d%\|| (?:it|s)/(?:it|s)\b|\d+m?s/(?:step|epoch)",
    "a warning": r"\w*Warning: ",
}
found = []
for path in sorted(Path("nbs").rglob("*.ipynb")):
    if ".ipynb_checkpoints" in path.parts:
        continue
    for i, cell in enumerate(nbformat.read(path, 4).cells):
        for o in cell.get("outputs", []):
            if o.output_type == "error" or o.get("name") == "stderr":
                found.append(f"{path} cell {i}: an error or something on stderr")
            text = "\n".join(
                [
                    o.get("text", ""),
                    *(
                        v if isinstance(v, str) else str(v)
                        for k, v in o.get("data", {}).items()
                        if not k.startswith("image/")
                    ),
                ]
            )
            found += [
                f"{path} cell {i}: {what}: {m[0][:100]}"
                for what, pattern in bad.items()
                if (m := re.search(pattern, text))
            ]
sys.exit("\n".join(dict.fromkeys(found)) or None)
