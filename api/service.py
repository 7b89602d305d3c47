"What all routes share: settings, models that are loaded and warm, the gate, keys, and the log of predictions."
import logging
import time

import numpy as np
from threadpoolctl import threadpool_limits

from agri_cae.io.images import Picture
from agri_cae.serve import Denoiser
from agri_cae.service.requests import Shared, denoise_bytes, encode, look, tuned

from .gate import Gate
from .keys import Keys, Rates
from .problems import Problem
from .settings import ApiSettings
from .shell import PIXELS, PREDICTIONS, request_id
from .watch import Monitor

log = logging.getLogger("agri_cae.api")


class Service:
    "Raises `ConfigError` and `ModelError` when it cannot work as it is set up."
    def __init__(self, cfg:ApiSettings):
        self.cfg, self.monitor, self.models = cfg, Monitor(cfg.named.values()) if cfg.monitor else None, {}
        self.gate, self.keys, self.rates = Gate(cfg), Keys(cfg), Rates(cfg.rate)

    def warm(self):
        "Load all models, and let each denoise a little picture: the first request waits for nothing."
        threadpool_limits(1, "blas")   # pictures side by side share the cores better than one that is spread over them: a small product of matrices took 2 to 1500 ms
        for name, model in self.cfg.named.items():
            d = Denoiser.load(**self.cfg.serve.model_dump() | dict(model=model))
            self.models[name] = Denoiser(Shared(d.engine), d.card, d.cfg)
            grey = np.random.default_rng(0).integers(100, 140, (64, 64, 1), np.uint8)
            denoise_bytes(tuned(self.models[name], strength="auto"), encode(Picture(grey), "jpeg")).file("png")
        start = time.perf_counter(); next(iter(self.models.values()))(np.full((256, 256, 1), 99, np.uint8))
        self.gate.pace = (time.perf_counter() - start) / 256**2   # a first guess
        log.info("%s ready", ", ".join(d.name for d in self.models.values()))

    @property
    def ready(self): return len(self.models) == len(self.cfg.named) and not self.gate.draining

    def denoiser(self, model:str|None=None, strength=None, sigma:float|None=None, tile:int|None=None, value_range:tuple|None=None)->Denoiser:
        "The model as a request wants it. A noise that is told decides the strength, unless that is given."
        if model is not None and model not in self.models: raise Problem(404, f"There is no model {model}. Choose one of {', '.join(self.models)}.")
        if strength is None and sigma is not None: strength = "auto"
        asked = dict(strength=strength, tile=tile, value_range=value_range)
        return tuned(self.models[model or next(iter(self.models))], **{k: v for k, v in asked.items() if v is not None})

    async def look(self, data:bytes)->int: # pixels
        "The size of a picture by its header. Raises `Problem` 422."
        facts = await self.gate.look(look, data)
        return self.fits(facts.width * facts.height)

    def fits(self, pixels:int)->int:
        if pixels > self.cfg.upload_pixels: raise Problem(422, f"The picture has {pixels:,} pixels; {self.cfg.upload_pixels:,} are taken. Cut it into parts.")
        return pixels

    def denoise(self, request, denoiser:Denoiser, data:bytes, progress, then, **kw)->tuple: # the `Answer`, then(answer)
        "Denoise, make what is answered, and log it; for a thread."
        a = denoise_bytes(denoiser, data, progress=progress, max_pixels=self.cfg.upload_pixels, **kw)
        made = then(a)
        self.tell(request, a.denoiser, a.sigma, a.before.data, a.after.data)
        return a, made

    def tell(self, request, denoiser, sigma, before, after):
        "Count a prediction and log it, before it is answered: what was answered is in the log."
        PREDICTIONS.labels(denoiser.name).inc(); PIXELS.inc(before.shape[0] * before.shape[1])
        if not self.monitor: return
        try: self.monitor.answered(request_id(request.scope), denoiser, sigma, milliseconds(request), before, after)
        except Exception: log.exception("the log of predictions failed")   # the picture is answered all the same

    def failed(self, request_id:str, status:int, milliseconds:float):
        "Log a prediction that could not be made, off the event loop."
        if self.monitor: self.gate.heads.submit(self.monitor.failed, request_id, status, milliseconds)

def milliseconds(request)->float: return round(1000 * (time.perf_counter() - request.scope["state"]["start"]), 1)
