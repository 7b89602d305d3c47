"What one process of the service holds: settings, models that are loaded and warm, the gate, keys, and the log."
import logging
import time

import numpy as np
from threadpoolctl import threadpool_limits

from agri_cae.config import AgriCaeError
from agri_cae.io.images import Picture
from agri_cae.serve import Denoiser
from agri_cae.service.batching import SharedEngine
from agri_cae.service.in_memory import denoise_bytes, encode, inspect_bytes, with_settings

from .gate import Gate
from .keys import Keys, Rates
from .problems import Problem
from .settings import ApiSettings
from .shell import PIXELS, PREDICTIONS, request_id
from .watch import Monitor

log = logging.getLogger("agri_cae.api")


class Worker:
    "Raises `ConfigError` and `ModelError` when it cannot work as it is set up."
    def __init__(self, cfg:ApiSettings):
        self.cfg, self.models = cfg, {}
        self.monitor = Monitor(cfg.named.values()) if cfg.monitor else None
        self.gate, self.keys, self.rates = Gate(cfg), Keys(cfg), Rates(cfg.rate, cfg.rates_file)

    def warm(self):
        """Load all models, and let each denoise a little picture: the first request waits for nothing.

        NumPy's products get one thread: pictures side by side share the cores better than one that is spread over
        them. With more, a small product of matrices took 2 to 1500 ms."""
        threadpool_limits(1, "blas")
        grey = np.random.default_rng(0).integers(100, 140, (64, 64, 1), np.uint8)
        for name, model in self.cfg.named.items():
            d = Denoiser.load(**self.cfg.serve.model_dump() | dict(model=model))
            self.models[name] = Denoiser(SharedEngine(d.engine), d.card, d.cfg)
            auto = with_settings(self.models[name], strength="auto")
            denoise_bytes(auto, encode(Picture(grey), "jpeg")).file("png")
        self.gate.pace = self._pace()
        log.info("%s ready", ", ".join(f"{name} ({d.name}, {d.digest})" for name, d in self.models.items()))

    def _pace(self):
        "A first guess of the seconds that a pixel takes"
        start = time.perf_counter()
        next(iter(self.models.values()))(np.full((256, 256, 1), 99, np.uint8))
        return (time.perf_counter() - start) / 256**2

    @property
    def ready(self): return len(self.models) == len(self.cfg.named) and not self.gate.draining

    def denoiser(self,
        model:str|None=None,         # name; None: the first one
        strength=None,               # 0 to 1, or auto; None: as the service is set up
        sigma:float|None=None,       # noise of the picture, 8-bit units
        tile:int|None=None,          # pixels
        value_range:tuple|None=None, # stored values of black and white
    )->Denoiser:
        """The model as a request wants it. A noise that is given decides the strength, unless that is given, too.

        Raises `Problem` 404."""
        if model is not None and model not in self.models:
            raise Problem(404, f"There is no model {model}. Choose one of {', '.join(self.models)}.")
        if strength is None and sigma is not None: strength = "auto"
        asked = dict(strength=strength, tile=tile, value_range=value_range)
        chosen = self.models[model or next(iter(self.models))]
        return with_settings(chosen, **{k: v for k, v in asked.items() if v is not None})

    async def count_pixels(self, data:bytes)->int:
        "The size of a picture by its header. Raises `Problem` 422."
        facts = await self.gate.run_header(inspect_bytes, data)
        return self.check_pixels(facts.width * facts.height)

    def check_pixels(self, pixels:int)->int: # the same
        "Raises `Problem` 422 for more pixels than are taken."
        if pixels <= self.cfg.upload_pixels: return pixels
        most = self.cfg.upload_pixels
        raise Problem(422, f"The picture has {pixels:,} pixels; {most:,} are taken. Cut it into parts.")

    def denoise(self, request, denoiser:Denoiser, data:bytes, progress, then, **kw)->tuple: # `Answer`, then(answer)
        "Denoise, make what is answered, and log it; for a thread."
        a = denoise_bytes(denoiser, data, progress=progress, max_pixels=self.cfg.upload_pixels, **kw)
        made = then(a)
        self.log_prediction(request, a.denoiser, a.found, a.after.data)
        return a, made

    def log_prediction(self, request, denoiser, found, after):
        "Count a prediction and log it, before it is answered: what was answered is in the log."
        PREDICTIONS.labels(denoiser.name).inc()
        PIXELS.inc(after.shape[0] * after.shape[1])
        if not self.monitor: return
        try:
            took = milliseconds(request)
            self.monitor.answered(request_id(request.scope), denoiser, found, took, after)
        except AgriCaeError as e: log.error("%s", e)   # a full disk, say; the picture is answered all the same
        except Exception: log.exception("the log of predictions failed")

    def log_failure(self, request_id:str, status:int, milliseconds:float):
        "Log a prediction that could not be made, off the event loop."
        if self.monitor: self.gate.heads.submit(self.monitor.failed, request_id, status, milliseconds)


def milliseconds(request)->float: # since the request arrived
    return round(1000 * (time.perf_counter() - request.scope["state"]["start"]), 1)
