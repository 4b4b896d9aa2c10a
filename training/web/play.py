"""A local page to type prompts, hear clips while they are made, and compare two checkpoints.

One thread generates; other jobs wait in line.  The clips of the last `KEPT` jobs stay in memory.
Only this machine can reach the page, unless `--host` names another address.
"""

from __future__ import annotations

import io
import json
import queue
import secrets
import threading
import time
import wave
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from common.errors import AttuneError
from common.page import spectrogram_picture
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler
from training.web.access import RequestFilter, refuse_invalid
from training.web.files import add_page

KEPT = 50
"""Number of finished jobs whose clips are kept."""
WAITING = 16
"""Number of jobs in line before more are refused."""
LONGEST_S = 120.0
_DEFAULTS = {"duration_s", "cfg", "top_k", "top_p", "temperature", "negative_prompt"}


class Order(BaseModel):
    """A request of the page."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=500)
    negative_prompt: str = Field(default="", max_length=500)
    runs: list[str] = Field(min_length=1, max_length=2)
    duration_s: float = Field(gt=0, le=LONGEST_S, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=2**53)
    as_is: bool = False
    """Take the prompts as typed, not in the form of the model's training."""
    cfg: float = Field(default=3.0, ge=0, le=20, allow_inf_nan=False)
    top_k: int = Field(default=250, ge=1, le=100_000)
    top_p: float = Field(default=1.0, gt=0, le=1)
    temperature: float = Field(default=1.0, ge=0, le=5, allow_inf_nan=False)


@dataclass
class Take:
    """The clip of one model in a job; grows while it is made."""

    run: str
    rate: int
    total_s: float
    trained_s: float
    """Length that the model was trained on; a longer clip is made in windows of this length."""
    heard: str
    """The prompt as the model hears it."""
    warnings: list[str]
    """What the text encoder does not take in of the prompts."""
    chunks: list[NDArray[np.float32]] = field(default_factory=list)
    spectrogram: str = ""

    @property
    def made_s(self) -> float:
        return sum(map(len, self.chunks)) / self.rate


@dataclass
class Job:
    """An order and its state."""

    order: Order
    takes: list[Take]
    state: str = "waiting"
    error: str = ""
    spent_s: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed")

    def tell(self) -> None:
        """Wake the threads that wait for a change."""
        with self.changed:
            self.changed.notify_all()


class Studio:
    """The models, and the thread that makes clips with them."""

    def __init__(self, samplers: Mapping[str, Sampler], sampling: SamplingConfig) -> None:
        self.samplers = dict(samplers)
        self.sampling = sampling
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._line: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="studio", daemon=True).start()

    def add(self, order: Order) -> str:
        """Put an order in line.

        Raises:
            AttuneError: an unknown run, a prompt without known words, or too many jobs in line.
        """
        for run in order.runs:
            if run not in self.samplers:
                raise AttuneError(f"no run {run!r} here; there are {', '.join(self.samplers)}")
        if len(set(order.runs)) < len(order.runs):
            raise AttuneError("name two different runs to compare")
        if order.negative_prompt and order.cfg == 1:
            raise AttuneError("a negative prompt acts through guidance; set cfg to other than 1")
        takes = []
        for run in order.runs:
            sampler = self.samplers[run]
            asked = [text for text in (order.prompt, order.negative_prompt) if text]
            heard = sampler.normalize(asked, as_is=order.as_is)
            unheard = [warning for found in sampler.unheard(heard) for warning in found]
            codec = sampler.codec
            frames = max(1, round(order.duration_s * codec.frame_rate))
            seconds = frames / codec.frame_rate
            takes.append(
                Take(run, codec.sample_rate, seconds, sampler.trained_s, heard[0], unheard)
            )
        with self._lock:
            if sum(not job.over for job in self._jobs.values()) >= WAITING:
                raise AttuneError(f"{WAITING} clips are waiting already; try again in a while")
            name = secrets.token_urlsafe(12)
            self._jobs[name] = Job(order, takes)
            for old in [key for key, job in self._jobs.items() if job.over][:-KEPT]:
                del self._jobs[old]
            self._line.put(name)  # within the lock: jobs stay in the order of the line
        return name

    def get(self, name: str) -> Job | None:
        with self._lock:
            return self._jobs.get(name)

    def describe(self, name: str, job: Job) -> dict[str, Any]:
        """A job as JSON for the page, with the number of jobs before it."""
        with self._lock:
            names = [key for key, other in self._jobs.items() if not other.over]
        return {
            "state": job.state,
            "error": job.error,
            "ahead": names.index(name) if name in names else 0,
            "spent_s": round(job.spent_s, 2),
            "takes": [
                {
                    "run": take.run,
                    "made_s": round(take.made_s, 3),
                    "total_s": round(take.total_s, 3),
                    "trained_s": take.trained_s,
                    "heard": take.heard,
                    "warnings": take.warnings,
                    "spectrogram": take.spectrogram,
                }
                for take in job.takes
            ],
        }

    def _work(self) -> None:
        while True:
            job = self.get(self._line.get())
            if job is None:
                continue
            began = time.monotonic()
            job.state = "making"
            job.tell()
            try:
                for take in job.takes:
                    for chunk in self._stream(take.run, job.order):
                        take.chunks.append(chunk)
                        job.spent_s = time.monotonic() - began
                        job.tell()
                    take.spectrogram = spectrogram_picture(np.concatenate(take.chunks), take.rate)
                job.state = "done"
            except Exception as error:  # a failed clip must not end the thread
                known = isinstance(error, AttuneError)
                job.error = str(error) if known else f"{type(error).__name__} while generating"
                job.state = "failed"  # set after the reason, which readers of the state expect
            job.tell()

    def _stream(self, run: str, order: Order) -> Iterator[NDArray[np.float32]]:
        wanted = order.model_dump(exclude={"prompt", "runs", "duration_s", "seed", "as_is"})
        sampling = SamplingConfig.model_validate(self.sampling.model_dump() | wanted)
        stream = self.samplers[run].stream(
            [order.prompt], order.duration_s, [order.seed], sampling, as_is=order.as_is
        )
        for chunk in stream:
            yield chunk[0]


def build_app(studio: Studio, hosts: list[str]) -> FastAPI:
    """The server's app.

    Args:
        hosts: host names of accepted requests, so a foreign page cannot use its own name for us.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    # Added last, so it sees every request first.
    app.add_middleware(RequestFilter, policy="style-src 'self'; media-src 'self'")
    add_page(app, __package__, "play")

    app.add_exception_handler(RequestValidationError, refuse_invalid)

    @app.exception_handler(AttuneError)
    async def refused(request: Request, error: AttuneError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)

    @app.get("/api/models")
    def models() -> dict[str, Any]:
        return {
            "runs": [
                {"name": name, "step": one.description["step"], "trained_s": one.trained_s}
                for name, one in studio.samplers.items()
            ],
            "defaults": studio.sampling.model_dump(include=_DEFAULTS),
            "longest_s": LONGEST_S,
        }

    @app.post("/api/jobs")
    def add(order: Order) -> dict[str, str]:
        return {"job": studio.add(order)}

    def find(name: str) -> Job:
        job = studio.get(name)
        if job is None:
            raise HTTPException(404, f"no such clip; the server keeps only the last {KEPT}")
        return job

    @app.get("/api/jobs/{name}")
    def standing(name: str) -> dict[str, Any]:
        return studio.describe(name, find(name))

    @app.get("/api/jobs/{name}/events")
    def events(name: str) -> StreamingResponse:
        job = find(name)

        def states() -> Iterator[str]:
            before = ""
            while True:
                last = job.over  # read first: an end during describe() is sent in the next round
                now = json.dumps(studio.describe(name, job))
                if now != before:
                    yield f"data: {now}\n\n"
                    before = now
                if last:
                    return
                with job.changed:
                    job.changed.wait(1.0)

        return StreamingResponse(states(), media_type="text/event-stream")

    @app.get("/api/jobs/{name}/{index}.wav")
    def sound(name: str, index: int) -> Response:
        """The whole clip; while it is made, what exists and then the rest as it comes."""
        job = find(name)
        if not 0 <= index < len(job.takes):
            raise HTTPException(404, "no such clip")
        take = job.takes[index]
        if job.over:
            return Response(b"".join(listen(job, take)), media_type="audio/wav")
        return StreamingResponse(listen(job, take), media_type="audio/wav")

    return app


def listen(job: Job, take: Take) -> Iterator[bytes]:
    """A 16-bit mono WAV file in pieces: what exists of a clip, and then the rest as it is made."""
    yield _header(take.rate, round((take.made_s if job.over else take.total_s) * take.rate))
    given = 0
    while True:
        complete = job.over or bool(take.spectrogram)
        while given < len(take.chunks):
            yield _pcm(take.chunks[given])
            given += 1
        if complete:
            return
        with job.changed:
            job.changed.wait(1.0)


def _header(rate: int, samples: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, samples, "NONE", ""))
        file.writeframesraw(b"")  # writes the header
        return buffer.getvalue()  # now: closing the file would set the length to 0


def _pcm(samples: NDArray[np.float32]) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
