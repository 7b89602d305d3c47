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
from agri_cae.service.in_memory import denoise_batch, inspect_bytes

from .problems import Problem, documented
from .uploads import read_json
from .worker import Worker

TYPES = {"FP32": np.float32, "UINT8": np.uint8, "UINT16": np.uint16}
DOT = (   # a PNG of 8x8 grey pixels, in base64
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAAklEQVR4AewaftIAAABGSURBVAXBgQqAIAwFwO25XIoV9J"
    "v9e4EU1UbaHW/enI07qmCSss5I1snFKlxpzy0EGF253u8APejpIwu+sgwpRgVYolo7fx02Gp2g2NkdAAAAAElFTkSuQmCC")
STATUSES = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504)


# what comes in and goes out

class Options(BaseModel):
    "How to denoise"
    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="which model; by default the first one")
    strength: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="0 returns the input, 1 the model's output; auto: by the noise of the picture")
    sigma: float | None = Field(
        None, ge=0, le=255, description="noise of the pictures, 8-bit units, where you know it")
    force: bool = Field(False, description="denoise again what was denoised before")
    format: Literal["png", "jpeg", "tiff", "webp"] | None = Field(
        None, description="of the answer; by default that of the picture")


class Tensor(BaseModel):
    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(
        max_length=4, description="(N, H, W, bands), or (N) for BYTES")
    datatype: Literal["FP32", "UINT8", "UINT16", "BYTES"] = Field(
        description="FP32 in [0, 1]; BYTES: image files in base64")
    data: list[Any] = Field(description="row by row; nested lists are taken, too")
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"example": {
        "id": "42", "parameters": {"strength": .8},
        "inputs": [{"name": "noisy", "shape": [1, 2, 2, 3], "datatype": "UINT8",
                    "data": [90, 120, 60, 92, 118, 61, 95, 121, 58, 91, 119, 63]}]}})
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
    model_config = ConfigDict(json_schema_extra={"example": {
        "instances": [{"b64": DOT}], "parameters": {"strength": "auto"}}})
    instances: list[_Base64 | _Image] = Field(max_length=256)
    parameters: Options = Options()


class _Denoised(_Base64):
    model: str
    strength: float
    sigma: float | None = Field(
        description="noise of the picture as it came, 8-bit units; null: too small to say")


class PredictResponse(BaseModel):
    predictions: list[_Denoised]


# reading bodies

def _body(model):
    "The description of a body that is read by hand"
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _parse(model, text):
    try: return TypeAdapter(model).validate_json(text)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise Problem(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None


def _bytes(text):
    try: return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError): raise Problem(400, "An image is not text in base64.") from None


def _array(t:Tensor, worker:Worker):
    "The array of a tensor, checked"
    if len(t.shape) != 4: raise Problem(400, f"shape {t.shape} is not (N, H, W, bands).")
    if not math.prod(t.shape): raise Problem(400, f"shape {t.shape} is empty.")
    worker.check_pixels(math.prod(t.shape[:3]))
    try: a = np.asarray(t.data)
    except (ValueError, OverflowError, RecursionError): a = np.empty(0, object)
    if a.dtype.kind not in ("iuf" if t.datatype == "FP32" else "iu"):
        text = f"data holds something else than numbers of type {t.datatype}, or lists of different lengths."
        raise Problem(400, text)
    if a.size != math.prod(t.shape):
        raise Problem(400, f"data holds {a.size} values, shape {t.shape} wants {math.prod(t.shape)}.")
    dtype = TYPES[t.datatype]
    if t.datatype != "FP32" and (a.min() < 0 or a.max() > np.iinfo(dtype).max):
        raise Problem(400, f"data holds values that {t.datatype} cannot hold.")
    with np.errstate(over="ignore"): a = a.astype(dtype)
    if t.datatype == "FP32" and not np.isfinite(a).all(): raise Problem(400, "data holds values that FP32 cannot hold.")
    return a.reshape(t.shape)


# the work, for a thread

def _denoise_files(worker, request, texts, options, progress):
    "Image files in base64 -> (`Answer`, the file that comes back) of each"
    files = [_bytes(t) for t in texts]
    facts = [inspect_bytes(f) for f in files]
    worker.check_pixels(sum(f.width * f.height for f in facts))
    d = worker.denoiser(options.model, options.strength, options.sigma)
    done = [worker.denoise(request, d, f, progress, lambda a: a.file(options.format),
                           sigma=options.sigma, force=options.force) for f in files]
    return [(a, base64.b64encode(file).decode()) for a, file in done]


def _denoise_array(worker, request, tensor, options, progress):
    "A tensor -> the values of the denoised one"
    x, d = _array(tensor, worker), worker.denoiser(options.model, options.strength, options.sigma)
    y = denoise_batch(d, x, progress)
    for before, after in zip(x, y, strict=True):
        found = d.diagnose(before)
        worker.log_prediction(request, d, found, after.reshape(*after.shape[:2], -1)[..., :found.data.shape[2]])
    return y.ravel().tolist()


def _infer(worker, request, name, text, progress):
    r = _parse(InferRequest, text)
    t, options = r.inputs[0], r.parameters.model_copy(update=dict(model=name))
    if t.datatype == "BYTES":
        if t.shape != [len(t.data)]:
            raise Problem(400, f"data holds {len(t.data)} values, shape {t.shape} wants another number.")
        data = [b for _, b in _denoise_files(worker, request, t.data, options, progress)]
    else: data = _denoise_array(worker, request, t, options, progress)
    out = dict(name="denoised", shape=t.shape, datatype=t.datatype, data=data)
    made = dict(model_name=name, model_version=worker.models[name].card.version, outputs=[out])
    return json.dumps(made if r.id is None else made | dict(id=r.id)).encode()


def _predict(worker, request, text, progress):
    r = _parse(PredictRequest, text)
    texts = [i.b64 if isinstance(i, _Base64) else i.image.b64 for i in r.instances]
    done = _denoise_files(worker, request, texts, r.parameters, progress)
    return json.dumps(dict(predictions=[
        dict(b64=b, model=a.denoiser.name, strength=a.strength,
             sigma=None if a.sigma is None else round(a.sigma, 2)) for a, b in done])).encode()


# the routes

def router(worker:Worker, guard)->APIRouter:
    "Routes below /v2, and for Vertex AI."
    api = APIRouter()
    _about(api, worker)
    _about_models(api, worker, guard)
    _work(api, worker, guard)
    return api


V2 = dict(tags=["Open Inference Protocol"])


def _errors(*statuses): return documented(*statuses, v2=True)


def _about(api, worker):
    @api.get("/v2", summary="What is this?", **V2)
    async def server()->dict: return dict(name="agri_cae", version=__version__, extensions=[])

    @api.get("/v2/health/live", summary="Is the process alive?", **V2)
    async def live()->dict: return dict(live=True)

    @api.get("/v2/health/ready", summary="Are the models ready?", responses=_errors(503), **V2)
    async def ready()->dict:
        if not worker.ready: raise Problem(503, "Not ready.", Retry_After="2")
        return dict(ready=True)


def _card(worker, name):
    if name not in worker.models:
        raise Problem(404, f"There is no model {name}. Choose one of {', '.join(worker.models)}.")
    return worker.models[name].card


def _name_type(worker): return Annotated[str, Path(json_schema_extra={"enum": list(worker.cfg.named)})]


def _about_models(api, worker, guard):
    Name, guarded = _name_type(worker), [Depends(guard)]
    errors = _errors(401, 403, 404, 429)

    @api.get("/v2/models/{name:path}/ready", summary="Is a model ready?", responses=errors, dependencies=guarded, **V2)
    async def model_ready(name: Name)->dict:
        _card(worker, name)
        return dict(name=name, ready=True)

    @api.get("/v2/models/{name:path}", summary="What does a model take and give?", responses=errors,
             dependencies=guarded, **V2)
    async def model(name: Name)->dict:
        card = _card(worker, name)
        tensor = dict(datatype="FP32", shape=[-1, -1, -1, card.channels])
        return dict(name=name, versions=[card.version], platform="onnxruntime_onnx",
                    inputs=[dict(name="noisy") | tensor], outputs=[dict(name="denoised") | tensor])


def _work(api, worker, guard):
    Name, guarded = _name_type(worker), [Depends(guard)]

    async def work(request, f):
        async with worker.gate.enter():
            text = await read_json(request, worker.cfg.upload_bytes)
            made = await worker.gate.run(request, len(text) // 4, lambda progress: f(text, progress))
            return Response(made, media_type="application/json")

    @api.post("/v2/models/{name:path}/infer", summary="Denoise arrays, or files in base64",
              openapi_extra=_body(InferRequest), response_model=InferResponse, responses=_errors(*STATUSES),
              dependencies=guarded, **V2)
    async def infer(name: Name, request: Request):
        """Arrays of one size, or BYTES: image files in base64.

        ```sh
        curl -H 'Content-Type: application/json' http://localhost:8080/v2/models/fast/infer -d \
'{"inputs": [{"name": "noisy", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [90, 120, 60, 92, 118, 61]}]}'
        ```
        """
        _card(worker, name)
        return await work(request, lambda text, progress: _infer(worker, request, name, text, progress))

    @api.post(os.environ.get("AIP_PREDICT_ROUTE", "/predict"), summary="Denoise files in base64",
              openapi_extra=_body(PredictRequest), response_model=PredictResponse,
              responses=documented(*STATUSES), dependencies=guarded, tags=["Vertex AI"])
    async def predict(request: Request):
        """The contract of Vertex AI's custom containers; the path follows AIP_PREDICT_ROUTE.

        ```sh
        printf '{"instances": [{"b64": "%s"}]}' "$(base64 -w0 photo.jpg)" | \
curl -H 'Content-Type: application/json' http://localhost:8080/predict -d @-
        ```
        """
        return await work(request, lambda text, progress: _predict(worker, request, text, progress))
