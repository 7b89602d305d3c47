"Who is let in, how long it may take, and where the work is done: a bounded queue before a few threads."
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context

from agri_cae.engines.threads import cores

from .problems import Problem, busy
from .settings import ApiSettings

LEAST_PIXELS = 2**12   # the least that a request costs
LISTENS = .3           # seconds in which uvicorn may still take a connection after SIGTERM


class Left(Exception): "Nobody waits for this work any more."


class Gate:
    "Counts requests and pixels; work runs in threads, so that the event loop stays free."
    def __init__(self, cfg:ApiSettings):
        self.cfg, self.requests, self.pixels, self.draining, self.deadlines = cfg, 0, 0, False, set()
        self.end = None  # time of the event loop at which all must be answered, once the service is to stop
        self.pace = 0.   # seconds a pixel, of late, of all threads together
        self.last = 0.   # when work was last done or began
        self.work = ThreadPoolExecutor(cfg.at_once or cores() + 2, "picture")
        self.heads = ThreadPoolExecutor(1, "header")   # a header waits behind no picture

    @asynccontextmanager
    async def enter(self):
        "A place in the queue until the deadline; 503 when there is none, 504 when it is over."
        if self.draining: raise busy("The service is stopping.", 10)
        if self.requests >= self.cfg.queue_requests: raise busy(f"{self.requests} requests are waiting already.")
        self.requests += 1
        try:
            async with asyncio.timeout(self.cfg.deadline) as end:
                self.deadlines.add(end)
                if self.end: end.reschedule(min(end.when(), self.end))
                try: yield
                finally: self.deadlines.discard(end)
        except TimeoutError: raise self._too_late() from None
        finally: self.requests -= 1

    def _too_late(self):
        if self.end: return busy("The service is stopping.", 10)
        text = f"Not done within {self.cfg.deadline:g} s. Send a smaller picture, or take a faster model."
        return Problem(504, text, Connection="close")   # its body may still be coming

    async def run_header(self, f, *args):
        "Run a short function on a header off the event loop."
        return await asyncio.get_running_loop().run_in_executor(self.heads, f, *args)

    async def run(self, request, pixels:int, f):
        "f(progress) in a thread. It ends early, at the next tile, when the client has left or the deadline is over."
        pixels = max(pixels, LEAST_PIXELS)
        self._check_queue(pixels)
        if not self.pixels: self.last = asyncio.get_running_loop().time()
        self.pixels += pixels
        over = threading.Event()
        job = self._submit(f, over, pixels)
        done, gone = asyncio.wrap_future(job), asyncio.get_running_loop().create_task(_disconnected(request))
        try:
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done(): raise Problem(499, "The client has left.")
            return done.result()
        finally:
            over.set()
            gone.cancel()
            done.cancel()

    def _check_queue(self, pixels):
        "Better a refusal now than one at the deadline"
        wait = self.pixels * self.pace
        if self.pixels and self.pixels + pixels > self.cfg.queue_pixels:
            raise busy(f"{self.pixels:,} pixels are waiting already.", wait)
        if wait > .7 * self.cfg.deadline: raise busy(f"It would take {wait:.0f} s until its turn comes.", wait)

    def _submit(self, f, over, pixels):
        loop = asyncio.get_running_loop()

        def progress(*_):
            if over.is_set(): raise Left

        def start():
            progress()
            return f(progress)

        def free(job):
            well = not job.cancelled() and not job.exception()
            with suppress(RuntimeError):   # the loop may have ended before the work
                loop.call_soon_threadsafe(self._free, pixels, well)

        job = self.work.submit(copy_context().run, start)
        job.add_done_callback(free)
        return job

    def _free(self, pixels, well):
        self.pixels -= pixels
        if not well: return
        now = asyncio.get_running_loop().time()
        took = (now - self.last) / pixels
        self.pace, self.last = .7 * self.pace + .3 * took, now

    def drain(self):
        """Requests that are inside get the settings' time to end, less a second to send the answers. Soon there are no
        new ones: the server stops to listen first, so that none is refused while another process takes over.

        To be called in the thread of the event loop."""
        loop = asyncio.get_running_loop()
        self.end = loop.time() + self.cfg.seconds_to_end - 1
        for d in self.deadlines:
            with suppress(RuntimeError): d.reschedule(min(d.when(), self.end))   # one that is over already
        loop.call_later(LISTENS, setattr, self, "draining", True)

    def close(self):
        "Start no more work."
        for pool in (self.work, self.heads): pool.shutdown(wait=False, cancel_futures=True)


async def _disconnected(request):
    while (await request.receive())["type"] != "http.disconnect": pass
