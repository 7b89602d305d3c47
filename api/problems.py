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
    def __init__(self,
        status:int, # HTTP status
        detail:str, # what is wrong, and what to do
        **headers,  # of the answer; _ stands for -
    ):
        self.status, self.detail = status, detail
        self.headers = {k.replace("_", "-"): v for k, v in headers.items()}


def busy(
    detail:str,      # why
    seconds:float=2, # until there is room
)->Problem:
    "A refusal that asks to come again, in half a minute at most."
    return Problem(503, detail, Retry_After=str(min(30, max(1, round(seconds / 2)))))


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


STATUS = {
    400: "The picture cannot be read, or a parameter is wrong",
    401: "No valid API key",
    403: "The API key was revoked",
    404: "There is no such model",
    409: "The picture was denoised before; force=true does it again",
    413: "More bytes than are taken",
    415: "Content-Type names no picture",
    422: "More pixels than are taken",
    429: "Too many requests with this key; see Retry-After",
    503: "Too busy, or stopping; see Retry-After",
    504: "Not done before the deadline",
}


def documented(
    *statuses:int, # keys of `STATUS`
    v2=False,      # in the shape of the Open Inference Protocol
)->dict:
    "Responses for OpenAPI."
    media, model = ("application/json", "InferError") if v2 else ("application/problem+json", "ProblemDetails")
    content = {media: {"schema": {"$ref": f"#/components/schemas/{model}"}}}
    return {s: {"description": STATUS[s], "content": content} for s in statuses}


def _complaint(error):
    "What FastAPI finds wrong with a parameter, in words"
    where, text = error["loc"], error["msg"]
    return f"{where[-1] if len(where) < 2 else where[1]}: {text[:1].lower()}{text[1:]}"


def as_problem(e:Exception)->Problem:
    "Any exception that a handler lets out."
    match e:
        case Problem(): return e
        case DenoisedBefore(): return Problem(409, str(e))
        case AgriCaeError(): return Problem(400, str(e))
        case RequestValidationError(): return Problem(400, "; ".join(map(_complaint, e.errors())))
        case MemoryError(): return busy("There is not enough memory now.", 20)
        case HTTPException(): return Problem(e.status_code, str(e.detail), **(e.headers or {}))
        case _: return Problem(500, "An unexpected error. The log of the service tells more.")


def answer(
    e:Exception,    # what a handler raised
    path:str,       # of the request
    request_id:str, # as in the log
)->Response:
    "The response to an exception."
    p = as_problem(e)
    if path.startswith("/v2"):
        return Response(json.dumps({"error": p.detail}), p.status, p.headers, "application/json")
    title = "Client Closed Request" if p.status == 499 else HTTPStatus(p.status).phrase
    body = ProblemDetails(title=title, status=p.status, detail=p.detail, request_id=request_id).model_dump()
    return Response(json.dumps(body), p.status, p.headers, "application/problem+json")
