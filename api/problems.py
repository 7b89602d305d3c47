"Errors as the client sees them: RFC 9457, and the shape of the Open Inference Protocol below /v2."
import json
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from agri_cae.config import AgriCaeError
from agri_cae.serve import DenoisedBefore


class Problem(Exception):
    "A request that cannot be answered."
    def __init__(self, status:int, detail:str, **headers): self.status, self.detail, self.headers = status, detail, {k.replace("_", "-"): v for k, v in headers.items()}

def busy(detail:str, seconds:float=2): return Problem(503, detail, Retry_After=str(min(30, max(1, round(seconds / 2)))))


class ProblemDetails(BaseModel):
    "RFC 9457"
    type: str = Field("about:blank", description="kind of problem; about:blank: what the status says")
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="what is wrong, and what to do")
    request_id: str = Field(description="to be found in the log of the service")

class InferError(BaseModel):
    "An error of the Open Inference Protocol"
    error: str


STATUS = {400: "The picture cannot be read, or a parameter is wrong", 401: "No valid API key", 403: "The API key was revoked", 404: "There is no such model",
          409: "The picture was denoised before; force=true does it again", 413: "More bytes than are taken", 415: "Content-Type names no picture",
          422: "More pixels than are taken", 429: "Too many requests with this key; see Retry-After", 503: "Too busy, or stopping; see Retry-After", 504: "Not done before the deadline"}

def documented(*statuses, v2=False):
    "Responses for OpenAPI"
    media, model = ("application/json", "InferError") if v2 else ("application/problem+json", "ProblemDetails")
    return {s: {"description": STATUS[s], "content": {media: {"schema": {"$ref": f"#/components/schemas/{model}"}}}} for s in statuses}


def as_problem(e:Exception)->Problem:
    "Any exception that a handler lets out"
    match e:
        case Problem(): return e
        case DenoisedBefore(): return Problem(409, str(e))
        case AgriCaeError(): return Problem(400, str(e))
        case RequestValidationError(): return Problem(400, "; ".join(f"{x['loc'][-1] if len(x['loc']) < 2 else x['loc'][1]}: {x['msg'][:1].lower() + x['msg'][1:]}" for x in e.errors()))
        case MemoryError(): return busy("There is not enough memory now.", 20)
        case HTTPException(): return Problem(e.status_code, str(e.detail), **(e.headers or {}))
        case _: return Problem(500, "An unexpected error. The log of the service tells more.")

def answer(e:Exception, path:str, request_id:str)->Response:
    "The response to an exception"
    p = as_problem(e)
    if path.startswith("/v2"): body, media = {"error": p.detail}, "application/json"
    else: body, media = ProblemDetails(title=HTTPStatus(p.status).phrase if p.status != 499 else "Client Closed Request", status=p.status, detail=p.detail, request_id=request_id).model_dump(), "application/problem+json"
    return Response(json.dumps(body), p.status, p.headers, media)
