"""The HTTP API: for now, whether the server is well. Everything else is a 404 in JSON."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kalamdb import __version__


def make_app(rpc_port: int) -> Starlette:
    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "rpc_port": rpc_port})

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = error.detail if isinstance(error, HTTPException) else "internal error"
        headers = error.headers if isinstance(error, HTTPException) else None
        return JSONResponse({"error": text.lower(), "path": request.url.path}, status, headers)

    return Starlette(
        routes=[Route("/health", health), Route("/v1/api/healthcheck", health)],
        exception_handlers={HTTPException: failed, 500: failed},
    )
