"The structure of the project: what may import what, how notebooks look, whether names and links in prose are right."

import ast
import importlib
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import literate

# from the ground up: a module imports from its own floor's room and from those before it
FLOORS = (
    "config",
    "io",
    "noise",
    "measures",
    "curation",
    "data",
    "model",
    "modelfiles",
    "tracking",
    "engines",
    "serve",
    "monitoring",
    "fitting",
    "train",
    "evaluate",
    "search",
    "benchmark",
    "lifecycle",
    "flights",
    "service",
    "api",
    "cli",
)
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md"]


def sources():
    "(module, path) of the package and of the service, which is installed as agri_cae.api"
    for folder, prefix in ((ROOT / "agri_cae", ""), (ROOT / "api", "api.")):
        for p in sorted(folder.rglob("*.py")):
            if p.name not in ("__init__.py", "_modidx.py"):
                yield prefix + ".".join(p.relative_to(folder).with_suffix("").parts), p


MODULES = dict(sources())


def imports(module, path):
    "(module imported from, name) of every import of our own, inside functions, too"
    for n in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(n, ast.ImportFrom):
            continue
        if n.level:
            base = [*module.split(".")[: -n.level], *(n.module or "").split(".")]
        elif (n.module or "").split(".")[0] == "agri_cae":
            base = n.module.split(".")[1:]
        else:
            continue
        base = ".".join(filter(None, base))
        for a in n.names:
            whole = f"{base}.{a.name}".strip(".")
            yield (whole, None) if whole in MODULES else (base, a.name)


EDGES = [(m, *edge) for m, p in MODULES.items() for edge in imports(m, p)]


def room(module):
    return module.split(".")[0]


def test_every_module_has_a_floor():
    assert {room(m) for m in MODULES} == set(FLOORS)


def test_every_import_goes_down():
    wrong = {
        f"{m} imports {other}"
        for m, other, _ in EDGES
        if other and FLOORS.index(room(other)) > FLOORS.index(room(m))
    }
    assert not wrong, sorted(wrong)


def test_no_module_imports_itself_in_the_end():
    needs = {m: {o for k, o, _ in EDGES if k == m and o in MODULES} for m in MODULES}
    while leaves := [m for m, others in needs.items() if not others & needs.keys()]:
        for m in leaves:
            del needs[m]
    assert not needs, sorted(needs)


def test_private_names_stay_at_home():
    wrong = {
        f"{m} takes {name} from {other}"
        for m, other, name in EDGES
        if name and name[0] == "_" and not name.startswith("__")
    }
    assert not wrong, sorted(wrong)


@pytest.fixture(scope="module")
def books():
    return literate.notebooks([ROOT / "nbs"])


def nine_in_ten(values):
    return sorted(values)[int(len(values) * 0.9)]


def test_lines_and_cells_are_short(books):
    widths, cells = [w for b in books for w in b.widths], [n for b in books for n in b.cells]
    assert nine_in_ten(widths) <= 100 and max(widths) <= 120
    assert nine_in_ten(cells) <= 24 and max(cells) <= 40
    assert {b.module: b.height for b in books if b.module and b.height > 350} == {}


def test_parameters_are_documented(books):
    assert {b.module: b.undocumented for b in books if b.undocumented} == {}


def test_code_is_not_packed(books):
    assert {str(b.path.relative_to(ROOT)): b.habits for b in books if b.habits} == {}


def test_examples_run_as_pasted(books):
    assert {str(b.path.relative_to(ROOT)): b.broken for b in books if b.broken} == {}


def test_examples_are_near_and_pictures_common(books):
    near = [d for b in books for d in b.near]
    assert sum(d is not None and d <= literate.NEAR for d in near) >= 0.7 * len(near)
    assert sum(not b.picture for b in books) <= 6


def test_notebooks_are_small(books):
    assert {str(b.path.relative_to(ROOT)): round(b.kilobytes) for b in books if b.kilobytes > 700} == {}


def prose():
    "(where, text) of what people read: Markdown, docstrings, descriptions, comments"
    for p in TEXTS:
        yield p, p.read_text("utf-8")
    for p in NOTEBOOKS:
        for c in nbformat.read(p, 4).cells:
            yield p, c.source
    for p in (
        *(ROOT / "api").rglob("*.py"),
        *(ROOT / "tools").iterdir(),
        *(ROOT / "nbs" / "pipelines").glob("*.yaml"),
        ROOT / "deploy" / "alerts.yml",
    ):
        if p.is_file() and p.suffix != ".pyc":
            yield p, p.read_text("utf-8")


def found(dotted):
    "Whether agri_cae.a.b.c names a module, or something in one"
    parts = dotted.split(".")
    for k in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:k]))
        except ImportError:
            continue
        for name in parts[k:]:
            if not hasattr(thing, name):
                return False
            thing = getattr(thing, name)
        return True
    return False


def test_names_in_prose_exist():
    "agri_cae.x.y in text, docstrings and descriptions; files such as agri_cae.yaml are none"
    pytest.importorskip("keras")
    names = {
        (m[0].rstrip("."), p)
        for p, text in prose()
        for m in re.finditer(r"\bagri_cae\.(?!yaml|egg|pipelines|samples|weights|no_such)[a-z_]+(?:\.\w+)*", text)
    }
    wrong = {f"{p.relative_to(ROOT)}: {n}" for n, p in names if not found(n)}
    assert not wrong, sorted(wrong)


def test_model_addresses_in_prose_exist():
    from agri_cae.tracking.store import MODEL

    wrong = {
        f"{p.relative_to(ROOT)}: {m[0]}"
        for p, text in prose()
        for m in re.finditer(r"models:/([\w-]+)[@/]\w+", text)
        if m[1] != MODEL and not m[1].startswith("m-")
    }
    assert not wrong, sorted(wrong)


def links():
    "(where, target) of relative links in Markdown"
    texts = [(p, p.read_text("utf-8")) for p in TEXTS]
    texts += [(p, c.source) for p in NOTEBOOKS for c in nbformat.read(p, 4).cells if c.cell_type == "markdown"]
    for p, text in texts:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"\w+:|attachment", target):
                yield p, target


def test_links_lead_somewhere():
    wrong = {f"{p.relative_to(ROOT)}: {target}" for p, target in links() if not (p.parent / target).exists()}
    assert not wrong, sorted(wrong)
