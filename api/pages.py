"Pages for people: the try-it page, the description of the routes, and the samples that they show."
import base64
import hashlib
import html
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

from agri_cae.config import ServeConfig
from agri_cae.io.images import SAMPLES, sample

from .problems import Problem
from .settings import ApiSettings


def _settings():
    "Rows of a table"
    def row(name, f): return f"<tr><td><code>AGRI_CAE_{name.upper()}</code></td><td>{html.escape(f.description)}</td><td>{html.escape(str(f.default))}</td></tr>"
    own = {k: f for k, f in ApiSettings.model_fields.items() if k != "serve"} | {f"serve__{k}": f for k, f in ServeConfig.model_fields.items()}
    return "".join(row(k, f) for k, f in own.items())

def _page(name):
    "A page, and a policy that lets in its own scripts and styles and nothing else"
    text = files(__package__).joinpath(name).read_text("utf-8").replace("<!--settings-->", _settings())
    def hashes(tag): return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(o.encode()).digest()).decode()}'" for o in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))
    policy = f"default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; script-src {hashes('script')}; style-src {hashes('style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

def router()->APIRouter:
    "Routes that want no key: what they send is in the package."
    api = APIRouter(include_in_schema=False)

    @api.get("/")
    async def try_it(): return _page("page.html")

    @api.get("/docs")
    async def docs(): return _page("docs.html")

    @api.get("/samples/{name}")
    async def picture(name: str):
        if name not in SAMPLES: raise Problem(404, f"There is no sample {name}. Choose one of {', '.join(SAMPLES)}.")
        return FileResponse(sample(name), headers={"Cache-Control": "max-age=3600"})

    return api
