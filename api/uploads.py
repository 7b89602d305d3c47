"Bodies of requests: counted while they come in, kept in memory, never on disk."
import asyncio
from contextlib import suppress

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from agri_cae.io.images import SUFFIXES

from .problems import Problem

IMAGES = tuple(f"image/{f}" for f in dict.fromkeys(SUFFIXES.values()))


class _InMemory(MultiPartParser): spool_max_size = 2**62   # the count of bytes is the limit


async def _counted(request, limit):
    "The chunks of a body. The length in the header can only bring the refusal earlier; it is not trusted otherwise"
    n, stream = 0, request.stream()
    said = request.headers.get("content-length", "")
    too_long = said.isdecimal() and len(said) < 20 and int(said) > limit
    async for chunk in stream:
        n += len(chunk)
        if n > limit or too_long:
            await _take_in(stream, n, limit)
            raise Problem(413, f"The body has more than {limit:,} bytes.", Connection="close")   # nobody reads the rest
        yield chunk


async def _take_in(stream, n, limit):
    "A client that still sends does not read the answer: read as much again, for two seconds at most"
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(2):
            async for more in stream:
                n += len(more)
                if n > 2 * limit: break


async def read_body(request, limit:int)->bytes:
    "The whole body. Raises `Problem` 413."
    try: return b"".join([c async for c in _counted(request, limit)])
    except ClientDisconnect: raise Problem(499, "The client has left.") from None


def media_type(request)->str: # such as image/jpeg
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_json(request, limit:int)->bytes:
    "A JSON body, not parsed yet. Raises `Problem` 413, 415."
    if media_type(request) != "application/json":
        raise Problem(415, "Send JSON with the header Content-Type: application/json.")
    return await read_body(request, limit)


async def read_picture(request, limit:int)->bytes:
    "A picture as the body itself or as a file of a form. Raises `Problem` 400, 413, 415."
    media = media_type(request)
    if media.startswith("image/") or media == "application/octet-stream": return await read_body(request, limit)
    if media == "multipart/form-data": return await _read_form(request, limit)
    raise Problem(415, "Send a picture with a header such as Content-Type: image/jpeg, or a form with a file in it; "
                       f"not {media or 'nothing'}.")


async def _read_form(request, limit):
    try: form = await _InMemory(request.headers, _counted(request, limit), max_files=1, max_fields=20).parse()
    except ClientDisconnect: raise Problem(499, "The client has left.") from None
    except (MultiPartException, ValueError, LookupError) as e:
        raise Problem(400, f"The form cannot be read ({getattr(e, 'message', '') or e}).") from None
    file = next((v for v in form.values() if isinstance(v, UploadFile)), None)
    if file is None: raise Problem(400, "The form holds no file. Send one: curl -F file=@photo.jpg")
    try: return await file.read()
    finally: await form.close()


def accepted(accept:str)->str|None: # png, jpeg, tiff or webp; None: anything goes
    "The format that an Accept header likes best."
    known = [_preference(o) for o in accept.split(",")]
    wanted = [(q, m) for q, m in known if q > 0 and (m in IMAGES or m in ("image/*", "*/*"))]
    best = max(wanted, key=lambda o: o[0], default=(0, ""))[1]
    return best.removeprefix("image/") if best in IMAGES else None


def _preference(text):
    "(quality, media type) of a part of an Accept header such as image/webp;q=0.7"
    media, *parameters = text.split(";")
    try: quality = float(dict(p.strip().partition("=")[::2] for p in parameters).get("q", 1))
    except ValueError: quality = 0
    return quality, media.strip().lower()
