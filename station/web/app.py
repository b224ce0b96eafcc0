"""The application: all parts of the page, and what an error looks like."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from station.release import program_version
from station.web import (
    account,
    camera,
    common,
    engineer,
    flips,
    judge,
    line,
    lines,
    open_list,
    plate,
    plate_limits,
    plate_pictures,
    qa_exports,
    qa_pages,
    qa_proof,
    qa_search,
    recipes,
    sign_in,
)
from station.web.context import Web
from station.web.errors import ErrorBody, PageError, SignInNeeded
from station.web.feed import Feed
from station.web.frontier import Frontier
from station.web.pages import GuardedRoute, WebRouter, add_routes
from station.web.render import language_of, render
from station.web.texts import Formatter, Translator

_KEYS = {404: "errors.not_found", 405: "errors.method"}


def routers() -> list[WebRouter]:
    """Every part of the page; their order is that of the navigation."""
    return [
        common.router,
        line.router,
        lines.router,
        open_list.router,
        plate.router,
        plate_pictures.router,
        plate_limits.router,
        judge.router,
        qa_search.router,
        qa_pages.router,
        qa_exports.router,
        qa_proof.router,
        engineer.router,
        recipes.router,
        flips.router,
        camera.router,
        sign_in.router,
        account.router,
    ]


def create_app(web: Web) -> FastAPI:
    """The page of one station."""
    app = FastAPI(
        title=f"VQI station {web.station_id}",
        version=program_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[Middleware(Frontier, web=web, answer_error=answer_error)],
        lifespan=_life(web),
        redirect_slashes=False,
        exception_handlers={
            PageError: _on_error,
            HTTPException: _on_error,
            RequestValidationError: _on_error,
        },
    )
    app.router.route_class = GuardedRoute
    app.state.web = web
    web.routes = [one for router in routers() for one in router.declared]
    add_routes(app, web.routes)
    return app


def _life(web: Web) -> Any:
    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        feed = Feed(web, {"line": line.SHOWN, "lines": lines.SHOWN})
        web.live_source.listen(feed.turn)
        web.hub.start()
        web.people.start()
        web.others.start()
        if web.plant is not None:
            web.plant.start()
        web.live_source.start()
        try:
            yield
        finally:
            web.live_source.stop()
            web.people.stop()
            await web.others.stop()
            if web.plant is not None:
                web.plant.stop()

    return life


# --- errors ---------------------------------------------------------------------------------------


async def _on_error(request: Request, error: Exception) -> Response:
    if not hasattr(request.state, "person"):  # no route, so nobody asked who it is
        web: Web = request.app.state.web
        request.state.person = web.people.person_of(request)
    response = answer_error(request, _as_page_error(error))
    response.headers.update(getattr(error, "headers", None) or {})
    return response


def _as_page_error(error: Exception) -> PageError:
    if isinstance(error, PageError):
        return error
    if isinstance(error, RequestValidationError):
        return PageError(422, "errors.invalid", what=_what_is_wrong(error))
    assert isinstance(error, HTTPException)
    return PageError(error.status_code, _KEYS.get(error.status_code, "errors.bad_request"))


def _what_is_wrong(error: RequestValidationError) -> str:
    """Which fields, and what pydantic says of each; not what was sent."""
    found = []
    for item in error.errors()[:5]:
        names = [str(part) for part in item["loc"] if part not in ("query", "path", "body")]
        found.append(f"{'.'.join(names) or 'body'}: {item['msg']}")
    return "; ".join(found)


def answer_error(request: Request, error: PageError) -> Response:
    """An error as a page or as JSON; who must sign in is led there."""
    is_json = wants_json(request)
    if isinstance(error, SignInNeeded) and not is_json and request.method == "GET":
        return RedirectResponse(f"/sign-in?{_back(request)}", status_code=303)
    said = _said(request, error)
    headers = {} if error.retry_s is None else {"retry-after": str(error.retry_s)}
    if is_json:
        body = ErrorBody(error=said, key=error.key, reference=request.state.reference)
        return JSONResponse(body.model_dump(), status_code=error.status, headers=headers)
    page = {"status": error.status, "said": said, "reference": request.state.reference}
    response = render(request, "error.html", error.status, page=page)
    response.headers.update(headers)
    return response


def wants_json(request: Request) -> bool:
    """Of the JSON twins, and of whoever asks for nothing else."""
    accept = request.headers.get("accept", "")
    return request.url.path.endswith(".json") or (
        "application/json" in accept and "text/html" not in accept
    )


def _said(request: Request, error: PageError) -> str:
    web: Web = request.app.state.web
    language = language_of(request)
    fmt = Formatter(language, web.zone)
    values = dict(error.values)
    if isinstance(values.get("since"), float):
        values["since"] = fmt.moment(values["since"])  # type: ignore[arg-type]
    return Translator(language)(error.key, **values)


def _back(request: Request) -> str:
    query = f"?{request.url.query}" if request.url.query else ""
    return urlencode({"back": request.url.path + query})
