"The routes that machines expect: the Open Inference Protocol (KServe v2), and what Vertex AI wants of a container."
import base64
import binascii
import json
import math
import os
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agri_cae import __version__
from agri_cae.service.requests import denoise_batch, look

from .problems import Problem, documented
from .service import Service
from .uploads import read_json

TYPES = {"FP32": np.float32, "UINT8": np.uint8, "UINT16": np.uint16}
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAAklEQVR4AewaftIAAABGSURBVAXBgQqAIAwFwO25XIoV9Jv9e4EU1UbaHW/enI07qmCSss5I1snFKlxpzy0EGF253u8APejpIwu+sgwpRgVYolo7fx02Gp2g2NkdAAAAAElFTkSuQmCC"   # a PNG of 8x8 grey pixels


class Options(BaseModel):
    "How to denoise"
    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="which model; by default the first one")
    strength: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 returns the input, 1 the model's output; auto: by the noise of the picture")
    sigma: float | None = Field(None, ge=0, le=255, description="noise of the pictures, 8-bit units, where you know it")
    force: bool = Field(False, description="denoise again what was denoised before")
    format: Literal["png", "jpeg", "tiff", "webp"] | None = Field(None, description="of the answer; by default that of the picture")

class Tensor(BaseModel):
    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=4, description="(N, H, W, bands), or (N) for BYTES")
    datatype: Literal["FP32", "UINT8", "UINT16", "BYTES"] = Field(description="FP32 in [0, 1]; BYTES: image files in base64")
    data: list[Any] = Field(description="row by row; nested lists are taken, too")
    parameters: dict[str, Any] = {}

class InferRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"id": "42", "parameters": {"strength": .8}, "inputs": [
        {"name": "noisy", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [90, 120, 60, 92, 118, 61, 95, 121, 58, 91, 119, 63]}]}})
    id: str | None = None
    inputs: list[Tensor] = Field(min_length=1, max_length=1, description="one tensor, named noisy")
    outputs: list[dict[str, Any]] | None = None
    parameters: Options = Options()

class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]

class _Base64(BaseModel):
    b64: str = Field(description="image file in base64")

class _Image(BaseModel):
    image: _Base64

class PredictRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {"instances": [{"b64": DOT}], "parameters": {"strength": "auto"}}})
    instances: list[_Base64 | _Image] = Field(max_length=256)
    parameters: Options = Options()

class _Denoised(_Base64):
    model: str
    strength: float
    sigma: float | None = Field(description="noise of the picture as it came, 8-bit units; null: too small to tell")

class PredictResponse(BaseModel):
    predictions: list[_Denoised]


def _body(model): return {"requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}}}

def _parse(model, text):
    try: return TypeAdapter(model).validate_json(text)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise Problem(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None

def _bytes(text):
    try: return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError): raise Problem(400, "An image is not text in base64.") from None

def _array(t:Tensor, s:Service):
    "The array of a tensor, checked"
    if len(t.shape) != 4: raise Problem(400, f"shape {t.shape} is not (N, H, W, bands).")
    if not math.prod(t.shape): raise Problem(400, f"shape {t.shape} is empty.")
    s.fits(math.prod(t.shape[:3]))
    try: a = np.asarray(t.data)
    except (ValueError, OverflowError, RecursionError): a = np.empty(0, object)
    if a.dtype.kind not in ("iuf" if t.datatype == "FP32" else "iu"): raise Problem(400, f"data holds something else than numbers of type {t.datatype}, or lists of different lengths.")
    if a.size != math.prod(t.shape): raise Problem(400, f"data holds {a.size} values, shape {t.shape} wants {math.prod(t.shape)}.")
    if t.datatype != "FP32" and (a.min() < 0 or a.max() > np.iinfo(TYPES[t.datatype]).max): raise Problem(400, f"data holds values that {t.datatype} cannot hold.")
    with np.errstate(over="ignore"): return a.astype(TYPES[t.datatype]).reshape(t.shape)   # what becomes infinite is refused by the denoiser


def _denoise_files(s, request, texts, options, progress):
    "Image files in base64 -> their `Answer`s and the files that come back"
    files = [_bytes(t) for t in texts]
    s.fits(sum(f.width * f.height for f in map(look, files)))
    d = s.denoiser(options.model, options.strength, options.sigma)
    done = [s.denoise(request, d, f, progress, lambda a: a.file(options.format), sigma=options.sigma, force=options.force) for f in files]
    return [(a, base64.b64encode(file).decode()) for a, file in done]

def _infer(s, request, name, text, progress):
    r = _parse(InferRequest, text); t = r.inputs[0]; options = r.parameters.model_copy(update=dict(model=name))
    if t.datatype == "BYTES":
        if t.shape != [len(t.data)]: raise Problem(400, f"data holds {len(t.data)} values, shape {t.shape} wants another number.")
        data = [b for _, b in _denoise_files(s, request, t.data, options, progress)]
    else:
        x, d = _array(t, s), s.denoiser(name, options.strength, options.sigma)
        y = denoise_batch(d, x, progress)
        for before, after in zip(x, y): s.tell(request, d, None, before, after)
        data = y.ravel().tolist()
    card = s.models[name].card
    out = dict(name="denoised", shape=t.shape, datatype=t.datatype, data=data)
    return json.dumps(dict(model_name=name, model_version=card.version, outputs=[out]) | ({} if r.id is None else dict(id=r.id))).encode()

def _predict(s, request, text, progress):
    r = _parse(PredictRequest, text)
    texts = [i.b64 if isinstance(i, _Base64) else i.image.b64 for i in r.instances]
    return json.dumps(dict(predictions=[dict(b64=b, model=a.denoiser.name, strength=a.denoiser.cfg.strength, sigma=None if a.sigma is None else round(a.sigma, 2))
                                        for a, b in _denoise_files(s, request, texts, r.parameters, progress)])).encode()


def router(s:Service, guard)->APIRouter:
    "Routes below /v2, and for Vertex AI."
    api = APIRouter()
    v2 = dict(tags=["Open Inference Protocol"])
    errors = documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504, v2=True)
    Name = Annotated[str, Path(json_schema_extra={"enum": list(s.cfg.named)})]
    def some(*statuses): return {k: errors[k] for k in statuses}

    async def work(request, f):
        async with s.gate.enter():
            text = await read_json(request, s.cfg.upload_bytes)
            return Response(await s.gate.run(request, len(text) // 4, lambda progress: f(text, progress)), media_type="application/json")

    def known(name):
        if name not in s.models: raise Problem(404, f"There is no model {name}. Choose one of {', '.join(s.models)}.")
        return s.models[name].card

    @api.get("/v2", summary="What is this?", **v2)
    async def server()->dict: return dict(name="agri_cae", version=__version__, extensions=[])

    @api.get("/v2/health/live", summary="Is the process alive?", **v2)
    async def live()->dict: return dict(live=True)

    @api.get("/v2/health/ready", summary="Are the models ready?", responses=some(503), **v2)
    async def ready()->dict:
        if not s.ready: raise Problem(503, "Not ready.", Retry_After="2")
        return dict(ready=True)

    @api.get("/v2/models/{name}", summary="What does a model take and give?", responses=some(401, 403, 404, 429), dependencies=[Depends(guard)], **v2)
    async def model(name: Name)->dict:
        card = known(name); shape = [-1, -1, -1, card.channels]
        return dict(name=name, versions=[card.version], platform="onnxruntime_onnx", inputs=[dict(name="noisy", datatype="FP32", shape=shape)], outputs=[dict(name="denoised", datatype="FP32", shape=shape)])

    @api.get("/v2/models/{name}/ready", summary="Is a model ready?", responses=some(401, 403, 404, 429), dependencies=[Depends(guard)], **v2)
    async def model_ready(name: Name)->dict: known(name); return dict(name=name, ready=True)

    @api.post("/v2/models/{name}/infer", summary="Denoise arrays, or files in base64", openapi_extra=_body(InferRequest), response_model=InferResponse, responses=errors, dependencies=[Depends(guard)], **v2)
    async def infer(name: Name, request: Request):
        """Arrays of one size, or BYTES: image files in base64.

        ```sh
        curl -H 'Content-Type: application/json' http://localhost:8080/v2/models/fast/infer -d '{"inputs": [{"name": "noisy", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [90, 120, 60, 92, 118, 61]}]}'
        ```
        """
        known(name)
        return await work(request, lambda text, progress: _infer(s, request, name, text, progress))

    @api.post(os.environ.get("AIP_PREDICT_ROUTE", "/predict"), summary="Denoise files in base64", openapi_extra=_body(PredictRequest), response_model=PredictResponse,
              responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504), dependencies=[Depends(guard)], tags=["Vertex AI"])
    async def predict(request: Request):
        """The contract of Vertex AI's custom containers; the path follows AIP_PREDICT_ROUTE.

        ```sh
        printf '{"instances": [{"b64": "%s"}]}' "$(base64 -w0 photo.jpg)" | curl -H 'Content-Type: application/json' http://localhost:8080/predict -d @-
        ```
        """
        return await work(request, lambda text, progress: _predict(s, request, text, progress))

    return api
