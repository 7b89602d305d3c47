"""How the notebooks read, in numbers: python tools/literate.py [--each] [NOTEBOOK or FOLDER...]

Lines of exported cells, examples beside them, examples that run as pasted, documented parameters, pictures."""

import ast
import builtins
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import nbformat

NEAR = 30  # an example stands within so many exported lines
WIDE = 88  # a compound statement on one line is shorter


class Cell(NamedTuple):
    "A code cell: what it is for, and its lines without directives and empty ones."

    source: str
    lines: list
    directives: str
    outputs: list

    @property
    def exported(self):
        return bool(re.search(r"\bexports?\b", self.directives))

    @property
    def visible(self):
        return not self.exported and not re.search(r"\bhide\b|default_exp", self.directives)

    @property
    def picture(self):
        return any(k.startswith("image/") for o in self.outputs for k in o.get("data", {}))


def read(path):
    "The cells of a notebook, text among them as None"
    cells = []
    for c in nbformat.read(path, 4).cells:
        if c.cell_type != "code":
            cells.append(None)
            continue
        lines = [o for o in c.source.split("\n") if o.strip()]
        directives = " ".join(o for o in lines if o.startswith("#|"))
        cells.append(
            Cell(c.source, [o for o in lines if not o.startswith("#|")], directives, c.get("outputs", []))
        )
    return cells


def parsed(source):
    "The syntax tree of a cell, without lines for the shell"
    return ast.parse("\n".join("pass" if re.match(r"\s*[!%]", o) else o for o in source.split("\n")))


def imports_only(cell):
    return all(isinstance(n, ast.Import | ast.ImportFrom) for n in parsed(cell.source).body)


def defined(tree):
    "Names that a cell leaves behind"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((a.asname or a.name).split(".")[0] for a in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def used(tree):
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def pasted(cells):
    "Visible cells that use nothing the page does not show, and those that do: (number, names)"
    known, fine, broken = set(dir(builtins)) | {"display"}, 0, []
    for i, c in enumerate(cells):
        if c is None:
            continue
        tree = parsed(c.source)
        if c.visible:
            missing = used(tree) - known - set(defined(tree))
            fine += not missing
            if missing:
                broken.append((i, sorted(missing)))
        if c.visible or (c.exported and not imports_only(c)):
            known |= set(defined(tree))
    return fine, broken


def distances(cells):
    "For each exported cell: exported lines from its first to the next visible example; None where none follows"
    out = []
    for i, c in enumerate(cells):
        if c is None or not c.exported or imports_only(c):
            continue
        n = 0
        for other in cells[i:]:
            if other is None:
                continue
            if other.exported:
                n += 0 if imports_only(other) else len(other.lines)
            elif other.visible and not imports_only(other):
                break
        else:
            n = None
        out.append(n)
    return out


def undocumented(source):
    "Parameters of public functions and methods without a comment on their line"
    comments = {
        t.start[0]
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }

    def functions(body):
        for n in body:
            if isinstance(n, ast.ClassDef) and n.name[0] != "_":
                yield from functions(n.body)
            elif isinstance(n, ast.FunctionDef) and (n.name[0] != "_" or n.name in ("__init__", "__call__")):
                yield n

    for f in functions(ast.parse(source).body):
        a = f.args
        for arg in filter(None, [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]):
            if arg.arg not in ("self", "cls") and arg.lineno not in comments:
                yield f"{f.name}({arg.arg})"


def habits(source):
    "What is hard to read: (line, what)"
    lines = source.split("\n")
    for n in ast.walk(parsed(source)):
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.IfExp):
            yield n.lineno, "a conditional expression as a statement"
        test = getattr(n, "test", None) if isinstance(n, ast.If | ast.While) else None
        if isinstance(test, ast.BoolOp) and any(isinstance(k, ast.NamedExpr) for k in ast.walk(test)):
            yield n.lineno, "a condition that assigns and does more"
        compound = isinstance(n, ast.If | ast.For | ast.While | ast.With | ast.Try)
        if compound and n.body[0].lineno == n.lineno and len(lines[n.lineno - 1]) > WIDE:
            yield n.lineno, f"a compound statement on one line of more than {WIDE}"


class Notebook(NamedTuple):
    "The numbers of one notebook."

    path: Path
    module: str
    cells: list  # lines of each exported cell
    widths: list  # of each exported line
    height: int  # lines of the module
    near: list  # lines from an exported cell to the next example
    fine: int
    broken: list
    undocumented: list
    habits: list
    picture: bool
    kilobytes: float


def measure(path):
    cells = read(path)
    exported = [c for c in cells if c and c.exported]
    module = next((m[1] for c in cells if c and (m := re.search(r"default_exp (\S+)", c.directives))), "")
    fine, broken = pasted(cells)
    return Notebook(
        path,
        module,
        [len(c.lines) for c in exported],
        [len(o) for c in exported for o in c.lines],
        sum(c.source.count("\n") for c in exported),
        distances(cells),
        fine,
        broken,
        [u for c in exported for u in undocumented(c.source)],
        [(i, *h) for i, c in enumerate(cells) if c and c.exported for h in habits(c.source)],
        any(c.picture for c in cells if c),
        path.stat().st_size / 1000,
    )


def notebooks(where):
    found = [
        p
        for w in where
        for p in ([Path(w)] if str(w).endswith(".ipynb") else sorted(Path(w).rglob("*.ipynb")))
    ]
    return [measure(p) for p in found if ".ipynb_checkpoints" not in p.parts]


def spread(values):
    v = sorted(values)
    return f"{statistics.median(v):.0f} / {v[min(len(v) - 1, int(len(v) * 0.9))]} / {v[-1]}" if v else "-"


def table(books):
    "(what, number) of all notebooks together"
    modules = [b for b in books if b.module]
    cells, widths = [n for b in books for n in b.cells], [w for b in books for w in b.widths]
    near = [d for b in books for d in b.near]
    fine, broken = sum(b.fine for b in books), sum(len(b.broken) for b in books)
    return [
        ("modules", len(modules)),
        ("exported lines", len(widths)),
        ("lines of a module, median / p90 / most", spread(b.height for b in modules)),
        ("lines of an exported cell, median / p90 / most", spread(cells)),
        ("cells over 40 lines", sum(n > 40 for n in cells)),
        ("length of an exported line, median / p90 / most", spread(widths)),
        ("lines over 120", sum(w > 120 for w in widths)),
        (
            f"exported cells with a visible example within {NEAR} lines",
            f"{sum(d is not None and d <= NEAR for d in near)} of {len(near)}",
        ),
        ("visible cells that run as pasted", f"{fine} of {fine + broken}"),
        ("parameters without a comment", sum(len(b.undocumented) for b in books)),
        ("hard to read", sum(len(b.habits) for b in books)),
        ("notebooks without a picture", f"{sum(not b.picture for b in books)} of {len(books)}"),
        ("megabytes, all", f"{sum(b.kilobytes for b in books) / 1000:.1f}"),
        ("megabytes, largest notebook", f"{max(b.kilobytes for b in books) / 1000:.2f}"),
    ]


def details(book):
    yield (
        f"{book.path}: module {book.height} lines, cells {spread(book.cells)}, line lengths {spread(book.widths)}, "
        f"{book.kilobytes:.0f} kB, {'a' if book.picture else 'no'} picture, examples after {book.near}"
    )
    for i, names in book.broken:
        yield f"  cell {i} uses {', '.join(names)}, which the page does not show"
    for u in book.undocumented:
        yield f"  {u} has no comment"
    for i, line, what in book.habits:
        yield f"  cell {i} line {line}: {what}"


if __name__ == "__main__":
    where = [a for a in sys.argv[1:] if a != "--each"] or ["nbs"]
    books = notebooks(where)
    if "--each" in sys.argv:
        print("\n".join(o for b in books for o in details(b)))
    for what, number in table(books):
        print(f"{what}: {number}")
