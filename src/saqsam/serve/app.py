"""The web application: the page, its samples, and a JSON interface to the models.

Nothing that a request names is ever opened as a file: images come as bytes, models by the names that the command line
gave them, samples and parts of the page from a fixed list.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from saqsam.export.web.page import SAMPLES, read_page
from saqsam.segmentation.formats.coco import coco_document
from saqsam.segmentation.formats.pictures import mask_pngs
from saqsam.serve.session import (
    MAX_UPLOAD,
    ServedModel,
    Session,
    UnknownImage,
    Upload,
    agreement,
    parse_prompt,
)

MAX_REQUEST = 2**16
"""Largest JSON request, in bytes."""
COOKIE = "saqsam_token"
ANY_HOST = "*"
"""Stands for every value of the `Host` header, for a server that a token protects."""
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
"""Files of the page that web exports have too, by path, and their types."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    session: Session, hosts: Sequence[str], token: str | None = None, *, workers: int = 4
) -> ASGIApp:
    """Return the application.

    Args:
        session: The models.
        hosts: Values of the `Host` header that are answered, such as `127.0.0.1:8000`, or `ANY_HOST`.
        token: Secret that every request has to bring, as `?token=` the first time and as a cookie afterwards; None
            answers everyone.
        workers: Requests that compute at the same time.
    """
    limiter = anyio.CapacityLimiter(workers)
    api = _Api(session, limiter)
    routes = [Route(path, _static(read_page(name), kind)) for path, (name, kind) in PAGE.items()]
    routes.append(Route("/models.js", _static(_own_models(), PAGE["/page.js"][1])))
    routes += [
        Route(f"/samples/{name}", _static(read_page(f"samples/{name}"), "image/jpeg")) for name in SAMPLES
    ]
    routes += [
        Route("/api/state", api.state),
        Route("/api/images", _answering(api.upload), methods=["POST"]),
        Route("/api/predict", _answering(api.predict), methods=["POST"]),
        Route("/api/everything", _answering(api.everything), methods=["POST"]),
        Route("/api/mask", _answering(api.mask), methods=["POST"]),
    ]
    return _Guard(Starlette(routes=routes), frozenset(hosts), token)


class _Guard:
    """Middleware that answers only known hosts, pages of the same origin, and holders of the token."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str], token: str | None) -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        if host not in self.hosts and ANY_HOST not in self.hosts:
            # A page elsewhere may point its own name to this machine (DNS rebinding).
            await _refuse(421, f"unknown host {host[:100]}")(scope, receive, send)
        elif origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            await _refuse(403, "requests of other pages are not answered")(scope, receive, send)
        elif self.token is not None and not self._has_token(scope):
            await _refuse(401, "open the address with the token that the command printed")(
                scope, receive, send
            )
        else:
            await self.app(scope, receive, self._with_headers(scope, send))

    def _has_token(self, scope: Scope) -> bool:
        assert self.token is not None
        request = Request(scope)
        given = request.query_params.get("token") or request.cookies.get(COOKIE, "")
        return secrets.compare_digest(given.encode(), self.token.encode())

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        added = dict(_HEADERS)
        if self.token is not None and "token" in Request(scope).query_params:
            added["Set-Cookie"] = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                pairs = [(name.lower().encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message.get("headers", []), *pairs]}
            await send(message)

        return sending


class _Api:
    """Handlers of the JSON interface."""

    def __init__(self, session: Session, limiter: anyio.CapacityLimiter) -> None:
        self.session, self.limiter = session, limiter

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Compute in a thread, so that other requests are answered meanwhile."""
        return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=self.limiter)

    async def state(self, _: Request) -> Response:
        """Return the models and samples."""
        models = [
            {"name": one.name, "kind": one.kind, "bytes": one.size} for one in self.session.models.values()
        ]
        return JSONResponse({"models": models, "samples": list(SAMPLES)})

    async def upload(self, request: Request) -> Response:
        """Take the bytes of an image, and return its id and size."""
        name = request.query_params.get("name", "image")[:100]
        content = await _body(request, MAX_UPLOAD, f"{name}: expected at most {MAX_UPLOAD // 2**20} MiB")
        number, upload = await self.run(self.session.upload, content, name)
        height, width = upload.size
        return JSONResponse({"image": number, "width": width, "height": height})

    async def predict(self, request: Request) -> Response:
        """Return the mask of each model for a prompt, the times, and how far the first two agree."""
        content = await _json(request)
        upload, models = self._subjects(content)
        prompt = parse_prompt(content.get("prompt"), upload.size)
        answers = [await self.run(self.session.predict, upload, model, prompt) for model in models]
        encoded = [self.session.encode(upload, model)[1] for model in models]
        result: dict[str, Any] = {
            "answers": [
                {**one.to_dict(), "encode_ms": round(1000 * seconds, 1)}
                for one, seconds in zip(answers, encoded, strict=True)
            ]
        }
        if len(answers) == 2:
            result["iou"] = round(agreement(answers[0].mask, answers[1].mask), 4)
        return JSONResponse(result)

    async def everything(self, request: Request) -> Response:
        """Return the masks of everything in an image for each model."""
        upload, models = self._subjects(await _json(request))
        sides = []
        for model in models:
            answers, seconds = await self.run(self.session.everything, upload, model)
            sides.append({"masks": [one.to_dict() for one in answers], "ms": round(1000 * seconds)})
        return JSONResponse({"answers": sides})

    async def mask(self, request: Request) -> Response:
        """Return the mask of a prompt at the size of the image, as PNG or COCO JSON."""
        content = await _json(request)
        upload, (model, *_) = self._subjects(content)
        prompt = parse_prompt(content.get("prompt"), upload.size)
        image = await self.run(self.session.full_mask, upload, model, prompt)
        if content.get("format") == "coco":
            document = coco_document([image], polygons=False, tolerance=0.0)
            return Response(document, media_type="application/json")
        if content.get("format") != "png":
            raise ValueError("format: expected png or coco")
        ((_, picture),) = mask_pngs(image)
        return Response(picture, media_type="image/png")

    def _subjects(self, content: Mapping[str, Any]) -> tuple[Upload, list[ServedModel]]:
        """Return the image and the models that a request names."""
        names, number = content.get("models"), content.get("image")
        if not isinstance(names, list) or not 1 <= len(names) <= 2 or not isinstance(number, str):
            raise ValueError("expected an image and one or two models")
        unknown = [name for name in names if not (isinstance(name, str) and name in self.session.models)]
        if unknown:
            raise ValueError("expected models that the page offers")
        return self.session.image(number), [self.session.models[name] for name in names]


def _answering(handler: Handler) -> Handler:
    """Turn the errors of a handler into responses with one message."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except UnknownImage as error:
            return _refuse(404, str(error))
        except ValueError as error:
            return _refuse(400, str(error))
        except ClientDisconnect:
            return Response(status_code=499)

    return answer


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


async def _body(request: Request, limit: int, message: str) -> bytes:
    """Read the body of a request, which ends as soon as it is larger than the limit."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise ValueError(message)
    return bytes(content)


async def _json(request: Request) -> dict[str, Any]:
    content = await _body(request, MAX_REQUEST, f"request: expected at most {MAX_REQUEST:,} bytes")
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("request: expected JSON") from None
    if not isinstance(parsed, dict):
        raise ValueError("request: expected an object")
    return parsed


def _own_models() -> bytes:
    """Return the module with which the page asks this server."""
    return (importlib.resources.files("saqsam.serve") / "page" / "models.js").read_bytes()


def _static(content: bytes, kind: str) -> Handler:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer
