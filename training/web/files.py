"""Files of a served page: HTML, script and stylesheet."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from common import page


def add_page(app: FastAPI, package: str, name: str) -> None:
    """Serve `NAME.html` of a package at `/`, `NAME.js`, and the common stylesheet."""
    style = resources.files("common") / "templates" / "style.css"
    script = resources.files(package) / f"{name}.js"
    for path, kind, content in (
        ("/", "text/html", page.render(package, f"{name}.html")),
        (f"/{name}.js", "text/javascript", script.read_text(encoding="utf-8")),
        ("/style.css", "text/css", style.read_text(encoding="utf-8")),
    ):
        app.add_api_route(path, _answer(content, kind), methods=["GET"])


def _answer(content: str, kind: str) -> Any:
    def answer() -> Response:
        return Response(content, media_type=kind)

    return answer
