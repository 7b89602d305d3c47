"Pages for people: the try-it page, the description of the routes, and the samples that they show."
import base64
import hashlib
import html
import re
from importlib.resources import files
from string import Template

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

from agri_cae.config import ServeConfig
from agri_cae.io.images import SAMPLES, sample
from agri_cae.monitoring.log import MonitorConfig

from .problems import Problem
from .settings import ApiSettings

SETTING = Template("<tr><td><code>$name</code></td><td>$text</td><td>$default</td></tr>")


def fill(
    template:Template, # HTML with $names
    **values,          # anything; shown as text
)->str:
    "HTML with the values in their places, escaped."
    return template.substitute({k: html.escape(str(v)) for k, v in values.items()})


def settings_table()->str: # rows of HTML
    "All settings of the service, as the page shows them."
    serve = ApiSettings.model_fields["serve"].default   # not all as for an array in Python
    own = {k: (f, f.default) for k, f in ApiSettings.model_fields.items() if k != "serve"}
    nested = {f"serve__{k}": (f, getattr(serve, k)) for k, f in ServeConfig.model_fields.items()}
    monitor = {f"monitor_{k}": (f, f.default) for k, f in MonitorConfig.model_fields.items()}
    return "".join(fill(SETTING, name=f"AGRI_CAE_{k.upper()}", text=f.description, default=default)
                   for k, (f, default) in (own | nested | monitor).items())


def _hashes(text, tag):
    "Sources of a content security policy: exactly these scripts or styles"
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
    digests = [base64.b64encode(hashlib.sha256(o.encode()).digest()).decode() for o in parts]
    return " ".join(f"'sha256-{d}'" for d in digests)


def _page(name):
    "A page, and a policy that lets in its own scripts and styles and nothing else"
    text = files(__package__).joinpath(name).read_text("utf-8").replace("<!--settings-->", settings_table())
    policy = "; ".join((
        "default-src 'none'", "connect-src 'self'", "img-src 'self' blob: data:",
        f"script-src {_hashes(text, 'script')}", f"style-src {_hashes(text, 'style')}",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"))
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
        if name not in SAMPLES:
            raise Problem(404, f"There is no sample {name}. Choose one of {', '.join(SAMPLES)}.")
        return FileResponse(sample(name), headers={"Cache-Control": "max-age=3600"})

    return api
