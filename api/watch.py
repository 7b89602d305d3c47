"Monitoring: each prediction leaves its numbers in the log, a thread examines them, and a page shows them."
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from agri_cae.monitoring.alerts import Watcher, list_alerts
from agri_cae.monitoring.dashboard import CSP, monitor_page
from agri_cae.monitoring.gauges import prometheus_text
from agri_cae.monitoring.log import PredictionLog
from agri_cae.monitoring.profile import find_profiles
from agri_cae.monitoring.statistics import diagnosed_statistics
from agri_cae.serve import model_path

from .problems import Problem


class Monitor:
    "Raises `OutputError` when the log cannot be written, `ModelError` for a model that is not there."
    def __init__(self,
        models, # names, paths or URIs of the models that are served
    ):
        self.log = PredictionLog()
        weights = [model_path(m) for m in models]   # an address is looked up once
        self.watcher = Watcher(self.log, lambda: find_profiles(weights))

    def answered(self, request_id:str, denoiser, found, milliseconds:float, after):
        "A prediction that is about to be answered: what was found in the picture, and the denoised pixels as stored."
        values = diagnosed_statistics(found, after, denoiser.strength_for(found))
        self.log.write(request_id, denoiser.name, found.data.shape, 200, milliseconds, values, found.data)

    def failed(self, request_id:str, status:int, milliseconds:float):
        "A prediction that could not be made."
        self.log.write(request_id, "", (), status, milliseconds)

    def metrics(self)->str: # text for Prometheus
        "What the watcher found last, and the open alerts."
        return prometheus_text(self.watcher.look, list_alerts(self.log))


def router(monitor:Monitor, keys)->APIRouter:
    "The page. A browser asks for a name and a password: any name will do, the password is an API key."
    api = APIRouter(include_in_schema=False)

    @api.get("/monitor")
    def page(request: Request, login: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]):
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        try: keys.owner(login.password if login else request.headers.get("x-api-key", bearer))
        except Problem as e:
            ask = 'Basic realm="agri_cae: an API key as password"'
            raise Problem(e.status, e.detail, WWW_Authenticate=ask) from None
        text = monitor_page(monitor.log, monitor.watcher.profiles, refresh=60)
        return HTMLResponse(text, headers={"Content-Security-Policy": CSP})

    return api
