"""The server of the raters' page: one pair at a time; each answer is on disk before the next pair.

The page sends the token of the rater's link as a bearer token.  The server finds the next pair from
the stored answers, so a closed page or a killed server resumes with the same pair.  Clips are sent
without file name, time or hash, under names that only one rater's page uses; the two clips of a
pair have the same length.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from training.evaluation.preference.answers import Answers, Conflict
from training.evaluation.preference.study import Side, Study, clip_path
from training.web.access import RequestFilter, refuse_invalid
from training.web.files import add_page
from training.web.limits import RateLimit

LONGEST_COMMENT = 1000


class Reply(BaseModel):
    """The answer for a pair, as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pair: str = Field(min_length=1, max_length=64)
    choice: Side
    comment: str = Field(default="", max_length=LONGEST_COMMENT)


class Raters:
    """Identifies raters by token, with rate limits for raters and for strangers."""

    def __init__(self, study: Study) -> None:
        # Looked up by hash, so that the time of a look-up reveals nothing about a token.
        self._raters = {_hash(rater.token): i for i, rater in enumerate(study.raters)}
        self._known = RateLimit(burst=120, per_s=4)
        self._strange = RateLimit(burst=10, per_s=1 / 6)

    def identify(self, request: Request) -> int:
        """The index of the rater.

        Raises:
            HTTPException: 401 for an unknown token, 429 for too many requests.  Requests of
                strangers do not count against a rater at the same address.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        digest = _hash(token)
        rater = self._raters.get(digest) if kind.lower() == "bearer" else None
        if rater is not None:
            wait = self._known.take(digest)
        else:
            wait = self._strange.take(request.client.host if request.client else "")
        if wait:
            raise HTTPException(429, "too many requests", {"Retry-After": str(wait)})
        if rater is None:
            raise HTTPException(401, "this link is not valid", {"WWW-Authenticate": "Bearer"})
        return rater


def build_app(folder: Path, study: Study, answers: Answers, hosts: list[str]) -> FastAPI:
    """Build the server.

    Args:
        folder: folder of the study.
        hosts: accepted host names; others are refused, against DNS rebinding.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    # Added last, so it runs first.
    app.add_middleware(RequestFilter, policy="style-src 'self'; media-src blob:")
    raters = Raters(study)
    known = Depends(raters.identify)

    app.add_exception_handler(RequestValidationError, refuse_invalid)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    add_page(app, __package__, "listen")

    def standing(rater: int) -> dict[str, Any]:
        """The number of pairs that a rater has done, and the next pair."""
        done = answers.answered(rater)
        found: dict[str, Any] = {"done": len(done), "of": len(study.pairs), "pair": None}
        for showing in study.raters[rater].showings:
            if showing.pair not in done:
                prompt = study.pairs[showing.pair].prompt
                clips = [showing.left, showing.right]
                found["pair"] = {"name": showing.name, "prompt": prompt, "clips": clips}
                break
        return found

    @app.get("/api/next")
    def ask(rater: int = known) -> dict[str, Any]:
        return standing(rater)

    @app.post("/api/answers")
    def answer(reply: Reply, rater: int = known) -> dict[str, Any]:
        """Store an answer.  Repeating it is allowed; a different answer is refused."""
        showings = {showing.name: showing for showing in study.raters[rater].showings}
        showing = showings.get(reply.pair)
        if showing is None:
            raise HTTPException(404, "no such pair")
        now = standing(rater)["pair"]
        if showing.pair not in answers.answered(rater) and showing.name != now["name"]:
            raise HTTPException(409, "other pairs come before this one")
        try:
            answers.add(rater, showing.pair, reply.choice, reply.comment)
        except Conflict:
            raise HTTPException(409, "a different answer for this pair is stored") from None
        return standing(rater)

    @app.get("/api/clips/{name}")
    def sound(name: str, rater: int = known) -> Response:
        sides: tuple[Side, ...] = ("left", "right")
        for showing in study.raters[rater].showings:
            for side in sides:
                if name == getattr(showing, side):
                    file = getattr(study.pairs[showing.pair], showing.model(side))
                    return Response(clip_path(folder, file).read_bytes(), media_type="audio/wav")
        raise HTTPException(404, "no such clip")

    return app


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
