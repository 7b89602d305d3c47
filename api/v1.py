"The routes for people and their programs."
import math
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from agri_cae.config import ConfigError
from agri_cae.io.formats import WRITTEN_AS
from agri_cae.io.images import SUFFIXES
from agri_cae.serve import why_left
from agri_cae.service.in_memory import comparison_png, describe

from .problems import documented
from .uploads import IMAGES, accepted, read_picture
from .worker import Worker, milliseconds

# what goes out

_PIXELS = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "properties": {"file": _PIXELS["schema"]}, "required": ["file"]}}
_BODY = {"requestBody": {"required": True,
                         "content": {**dict.fromkeys(IMAGES, _PIXELS), "multipart/form-data": _FORM}}}
_ERRORS = documented(400, 401, 403, 409, 413, 415, 422, 429, 503, 504)
_HEADERS = {k: {"description": text, "schema": {"type": "string"}} for k, text in {
    "X-Model-Version": "name@version of the model",
    "X-Model-Digest": "beginning of the SHA-256 of its weights",
    "X-Noise-Sigma": "noise of the picture as it came, 8-bit units; missing when it is too small to say",
    "X-Strength": "strength that was used; 0: the picture was left as it is",
    "X-Value-Range": "stored values that mean black and white",
    "X-Left-As-It-Is": "why the picture was left as it is; missing when it was denoised",
    "X-Warnings": "what to know about the picture; missing when there is nothing",
    "X-Milliseconds": "from the arrival of the request to its answer",
    "X-Request-Id": "yours, if you sent one; also in the log"}.items()}
_MODEL = {"name": "fast", "version": "3", "digest": "0f9ae8fbbd53", "preset": "fast", "channels": 3,
          "receptive_field": 76, "default": True, "created": "2026-11-20", "metrics": {"psnr": 33.1}}


class ModelInfo(BaseModel):
    "What is known of a model"
    model_config = ConfigDict(json_schema_extra={"example": _MODEL})
    name: str
    version: str
    digest: str = Field(description="beginning of the SHA-256 of the weights")
    preset: str
    channels: int = Field(description="bands")
    receptive_field: int = Field(description="side of the square that one pixel depends on, pixels")
    default: bool = Field(description="taken when a request names none")
    created: str
    metrics: dict = Field(description="in validation")


class Estimate(BaseModel):
    "Header and noise of a picture"
    format: str
    width: int
    height: int
    bands: int
    alpha: bool
    dtype: str
    exif: bool = Field(description="are there Exif tags?")
    gps: bool = Field(description="is there a position among them?")
    sigma: float = Field(description="standard deviation of the noise, 8-bit units")
    kind: str = Field(description="how it was found: white, jpeg (white before it was compressed) or camera (smoothed)")
    certain: bool = Field(description="false where fine content of this file could look the same")
    gain: float = Field(description="of the sensor, in linear light: what one electron adds, as a share of white")
    read: float = Field(description="standard deviation of the read noise, 8-bit units")
    strength: float = Field(description="what strength=auto would take")


# what comes in

def _range(text):
    "Stored values of black and white. Raises `ConfigError`"
    if text is None: return None
    try: lo, hi = map(float, text.split(","))
    except ValueError: lo = math.nan
    if math.isfinite(lo) and math.isfinite(hi) and lo < hi: return lo, hi
    raise ConfigError("range", f"{text!r} is not two rising numbers", "Write it like 5000,10000")


Strength = Annotated[Literal["auto"] | Annotated[float, Field(ge=0, le=1)] | None, Query(
    description="0 returns the input, 1 the model's output; auto: by the noise of the picture. By default what the "
                "service is set to, and auto with sigma")]
Sigma = Annotated[float | None, Query(
    ge=0, le=255, description="noise of the picture, 8-bit units, where you know it; it decides the strength when "
                              "that is auto or not given")]
Tile = Annotated[int | None, Query(
    ge=200, le=2048, multiple_of=8, description="side of the square that is denoised at once, pixels")]
Range = Annotated[str | None, Query(
    max_length=64, examples=["5000,10000"],
    description="stored values that mean black and white; by default the range of 8-bit types, and for others the "
                "values in the picture")]
Format = Annotated[Literal[*dict.fromkeys(o[1:] for o in SUFFIXES)] | None, Query(
    description="of the answer; by default what Accept asks for, else that of the picture")]
Force = Annotated[bool, Query(description="denoise again what was denoised before")]
Residual = Annotated[float, Query(
    ge=0, le=100, description="also show what was taken away, amplified by this; 0: not")]


# the routes

def router(worker:Worker, guard)->APIRouter:
    "Routes below /v1."
    api = APIRouter(prefix="/v1", tags=["pictures"], dependencies=[Depends(guard)])
    _add_denoise(api, worker)
    _add_compare(api, worker)
    _add_estimate(api, worker)
    _add_models(api, worker)
    return api


async def _work(worker, request, f, **asked):
    "f(denoiser, data, progress) with the picture of a request"
    async with worker.gate.enter():
        denoiser = worker.denoiser(**asked)
        data = await read_picture(request, worker.cfg.upload_bytes)
        pixels = await worker.count_pixels(data)
        return await worker.gate.run(request, pixels, lambda progress: f(denoiser, data, progress))


def _facts(a, request):
    "Headers of an answer"
    told = {"X-Model-Version": a.denoiser.name, "X-Model-Digest": a.denoiser.digest,
            "X-Strength": f"{a.strength:g}", "X-Value-Range": "{:g} {:g}".format(*a.found.span),
            "X-Milliseconds": f"{milliseconds(request):g}", "Vary": "Accept"}
    if a.sigma is not None: told["X-Noise-Sigma"] = f"{a.sigma:.2f}"
    if left := why_left(a.denoiser, a.found): told["X-Left-As-It-Is"] = left
    if a.found.warnings: told["X-Warnings"] = "; ".join(a.found.warnings).encode("ascii", "replace").decode()
    return told


def _described(description, content):
    "Responses for OpenAPI"
    return {200: {"description": description, "content": content, "headers": _HEADERS}} | _ERRORS


def _model_type(worker):
    return Annotated[Literal[*worker.cfg.named] | None, Query(description="which model; by default the first one")]


def _add_denoise(api, worker):
    Model = _model_type(worker)
    responses = _described("The denoised picture, with its metadata", dict.fromkeys(IMAGES, _PIXELS))

    @api.post("/denoise", openapi_extra=_BODY, response_class=Response, responses=responses,
              summary="Take the noise out of a picture")
    async def denoise(request: Request, model: Model = None, strength: Strength = None, sigma: Sigma = None,
                      tile: Tile = None, range: Range = None, format: Format = None, force: Force = False):
        """Depth, alpha, Exif with position, colour profile and map coordinates survive.

        ```sh
        curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' \
'http://localhost:8080/v1/denoise?strength=auto' -o clean.jpg
        curl -F file=@photo.jpg 'http://localhost:8080/v1/denoise?format=png' -o clean.png
        ```
        """
        format = SUFFIXES[f".{format}"] if format else accepted(request.headers.get("accept", ""))

        def work(denoiser, data, progress):
            return worker.denoise(request, denoiser, data, progress, lambda a: a.file(format), sigma=sigma, force=force)

        a, file = await _work(worker, request, work, model=model, strength=strength, sigma=sigma, tile=tile,
                              value_range=_range(range))
        kind = format or WRITTEN_AS.get(a.before.format, a.before.format)
        return Response(file, media_type=f"image/{kind}", headers=_facts(a, request))


def _add_compare(api, worker):
    Model = _model_type(worker)

    @api.post("/compare", openapi_extra=_BODY, response_class=Response, summary="Before and after, side by side",
              responses=_described("One PNG of 8 bits", {"image/png": _PIXELS}))
    async def compare(request: Request, model: Model = None, strength: Strength = None, sigma: Sigma = None,
                      tile: Tile = None, range: Range = None, force: Force = False, residual: Residual = 0):
        """For people who want to see what happens.

        ```sh
        curl -F file=@photo.jpg 'http://localhost:8080/v1/compare?residual=4' -o compare.png
        ```
        """
        values = _range(range)

        def draw(a): return comparison_png(a.before, a.after, residual, values or a.found.span)

        def work(denoiser, data, progress):
            return worker.denoise(request, denoiser, data, progress, draw, sigma=sigma, force=force)

        a, png = await _work(worker, request, work, model=model, strength=strength, sigma=sigma, tile=tile,
                             value_range=values)
        return Response(png, media_type="image/png", headers=_facts(a, request))


def _add_estimate(api, worker):
    errors = {k: v for k, v in _ERRORS.items() if k != 409}

    @api.post("/estimate", openapi_extra=_BODY, response_model=Estimate, summary="How noisy is a picture?",
              responses=errors)
    async def estimate(request: Request, range: Range = None):
        """Noise as it is stored, and of the sensor. Takes 32x32 pixels or more.

        ```sh
        curl -F file=@photo.jpg http://localhost:8080/v1/estimate
        ```
        """
        values = _range(range)
        return await _work(worker, request, lambda _, data, __: describe(data, values, worker.cfg.upload_pixels))


def _add_models(api, worker):
    known = set(ModelInfo.model_fields)

    @api.get("/models", response_model=list[ModelInfo], summary="Which models are there?",
             responses=documented(401, 403, 429, 503))
    async def models():
        """The default comes first.

        ```sh
        curl http://localhost:8080/v1/models
        ```
        """
        return [d.card.model_dump(include=known) | dict(name=name, digest=d.digest, default=i == 0)
                for i, (name, d) in enumerate(worker.models.items())]
