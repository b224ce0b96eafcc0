"""How a part of the page says what it shows and does: each route is declared once, with the role
that it needs, and gets its JSON twin, its checks and its place in the navigation from here."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import quote, urlsplit

from fastapi import Depends, FastAPI
from fastapi.datastructures import Default
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import ErrorBody
from station.web.guard import TOKEN_FIELD, form_of, guard, limited
from station.web.render import render

MAX_BODY_BYTES = 64_000
_IN_ADDRESSES = ":/%#?=@[]!$&'()*+,;"
Kind = Literal["page", "action", "data"]
View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Declared:
    """A route as it is served; `web.routes` lists them all."""

    method: str
    path: str
    role: Role | None
    """None: for everybody, also who must sign in first."""
    kind: Kind
    is_json: bool
    view: View
    template: str = ""
    menu: str = ""
    """Key of the text by which the navigation names this page; empty: it is not in there."""
    max_body_bytes: int = MAX_BODY_BYTES
    media_type: str = "application/json"
    to: str = ""
    """Where an action leads when nobody says where to go back to."""


class WebRouter:
    """The routes of one part of the page."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.declared: list[Declared] = []

    def page(
        self, path: str, *, template: str, role: Role | None = Role.VIEWER, menu: str = ""
    ) -> Callable[[View], View]:
        """GET `path` as a page, `path`.json as JSON, of the pydantic model that the view returns;
        the template knows it as `page`."""

        def declare(view: View) -> View:
            whole = self._prefix + path
            html = Declared("GET", whole, role, "page", False, view, template, menu)
            self._add(replace(html, path=json_path(whole), is_json=True, menu=""), html)
            return view

        return declare

    def action(
        self,
        path: str,
        *,
        role: Role | None,
        template: str = "",
        to: str = "/",
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> Callable[[View], View]:
        """POST `path` as a form, `path`.json as JSON. The view has a parameter `form`, a pydantic
        model; a field left empty in a form has its default. A form is answered by `template` where
        htmx asks and there is one, else leads to `form.back`, else to `to`, which the returned
        model's fields fill in."""

        def declare(view: View) -> View:
            whole = self._prefix + path
            form = Declared("POST", whole, role, "action", False, view, template, to=to)
            form = replace(form, max_body_bytes=max_body_bytes)
            self._add(replace(form, path=json_path(whole), is_json=True), form)
            return view

        return declare

    def data(
        self, path: str, *, role: Role | None = Role.VIEWER, media_type: str = "image/jpeg"
    ) -> Callable[[View], View]:
        """GET `path`: the view returns the response."""

        def declare(view: View) -> View:
            whole = self._prefix + path
            self._add(Declared("GET", whole, role, "data", False, view, media_type=media_type))
            return view

        return declare

    def _add(self, *declared: Declared) -> None:
        self.declared.extend(declared)


def add_routes(app: FastAPI, declared: Iterable[Declared]) -> None:
    """Whole addresses before those with parameters, and JSON twins first: `{name}` of a page would
    take `name.json` as well."""
    for one in sorted(declared, key=lambda one: ("{" in one.path, not one.is_json)):
        _add_route(app, one)


def json_path(path: str) -> str:
    return "/index.json" if path == "/" else path.rstrip("/") + ".json"


class GuardedRoute(APIRoute):
    """A route whose body is bounded and whose sender is looked at before anything else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler, declared = super().get_route_handler(), _declared_of(self.endpoint)

        async def guarded(request: Request) -> Response:
            request = limited(request, declared.max_body_bytes)
            await guard(request, declared.role, declared.kind)
            if declared.kind == "action" and declared.is_json:
                await request.body()  # FastAPI would call any error of it a 400
            return await handler(request)

        return guarded


def _declared_of(endpoint: Any) -> Declared:
    declared: Declared = endpoint.declared
    return declared


def _add_route(app: FastAPI, declared: Declared) -> None:
    endpoint = _endpoint(declared)
    endpoint.declared = declared
    is_shown = declared.is_json or declared.kind == "data"
    name = declared.view.__name__
    response_class: Any = Response if declared.kind == "data" else Default(JSONResponse)
    app.router.add_api_route(
        declared.path,
        endpoint,
        methods=[declared.method],
        include_in_schema=is_shown,
        response_model=_returned(declared) if declared.is_json else None,
        responses=_responses(declared),
        operation_id=_operation_id(declared),
        summary=(inspect.getdoc(declared.view) or name).splitlines()[0],
        tags=[declared.view.__module__.rpartition(".")[2]],
        response_class=response_class,
    )
    if declared.method == "GET":
        app.router.add_api_route(
            declared.path, endpoint, methods=["HEAD"], include_in_schema=False, response_model=None
        )


def _operation_id(declared: Declared) -> str:
    """By the address, which is declared once: two parts may call their views alike."""
    words = re.findall(r"\w+", f"{declared.method.lower()} {declared.path}")
    return "_".join(words)


_GUARDS = (400, 401, 403, 404, 421, 422, 503)
_ACTION_GUARDS = (408, 409, 413)


def _responses(declared: Declared) -> dict[int | str, dict[str, Any]]:
    """What there may be beside the answer."""
    statuses = _GUARDS + (_ACTION_GUARDS if declared.kind == "action" else ())
    found: dict[int | str, dict[str, Any]] = {one: {"model": ErrorBody} for one in statuses}
    if declared.kind == "data":
        found[200] = {"content": {declared.media_type: {}}}
    return found


def _returned(declared: Declared) -> Any:
    return get_type_hints(declared.view, include_extras=True)["return"]


# --- from a view to an endpoint -------------------------------------------------------------------


def current_web(request: Request) -> Web:
    web: Web = request.app.state.web
    return web


def current_person(request: Request) -> Person:
    """Set by the guard, which let nobody else in."""
    person: Person = request.state.person
    return person


_INJECTED = {Web: Depends(current_web), Person: Depends(current_person)}


def _endpoint(declared: Declared) -> Any:
    if declared.kind == "data" or declared.is_json:
        return _as_endpoint(declared.view, _parameters(declared.view))
    return _html_endpoint(declared)


def _parameters(view: View) -> list[inspect.Parameter]:
    """Of a view, with what this module puts in for `Web` and `Person`."""
    hints = get_type_hints(view, include_extras=True)
    return [
        parameter.replace(annotation=_annotated(hints[name]), kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(view).parameters.items()
    ]


def _annotated(hint: Any) -> Any:
    return Annotated[hint, _INJECTED[hint]] if hint in (Web, Person) else hint


def _as_endpoint(view: View, parameters: list[inspect.Parameter]) -> Any:
    """The view under a signature that FastAPI fills in; another one for each of its routes."""
    endpoint: Any
    if inspect.iscoroutinefunction(view):

        @functools.wraps(view)
        async def awaited(**values: Any) -> Any:
            return await view(**values)

        endpoint = awaited
    else:

        @functools.wraps(view)
        def called(**values: Any) -> Any:
            return view(**values)

        endpoint = called
    endpoint.__signature__ = inspect.Signature(parameters)
    return endpoint


def _html_endpoint(declared: Declared) -> Any:
    """Calls the view, then makes a page, a fragment or a redirect of what it returns."""
    parameters = _parameters(declared.view)
    given = {parameter.name for parameter in parameters}

    def show(request: Request, response: Response, **values: Any) -> Response:
        offered = {"request": request, "response": response}
        values |= {name: offered[name] for name in given & offered.keys()}
        model = declared.view(**values)
        shown = _answer(request, declared, model, values.get("form"))
        shown.raw_headers.extend(response.raw_headers)
        return shown

    own = [_form_from_fields(one) for one in parameters if one.name not in ("request", "response")]
    keyword = inspect.Parameter.KEYWORD_ONLY
    own.append(inspect.Parameter("request", keyword, annotation=Request))
    own.append(inspect.Parameter("response", keyword, annotation=Response))
    show.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return show


def _answer(request: Request, declared: Declared, model: Any, form: Any) -> Response:
    is_htmx = "hx-request" in request.headers
    if declared.kind == "page" or (declared.template and is_htmx):
        return render(request, declared.template, page=model)
    target = back_target(getattr(form, "back", ""))
    if not target:
        fields = model.model_dump() if isinstance(model, BaseModel) else {}
        target = declared.to.format(**fields)
    if is_htmx:
        there = quote(target, safe=_IN_ADDRESSES)  # a header has no other letters
        return Response(status_code=204, headers={"HX-Redirect": there})
    return RedirectResponse(target, status_code=303)


def back_target(text: str) -> str:
    """Where a form says to go back to, if that is a place on this page; else nothing."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    is_own = text.startswith("/") and not text.startswith("//") and "\\" not in text
    is_plain = text.isprintable() and not parts.scheme and not parts.netloc
    return text if is_own and is_plain else ""


def _form_from_fields(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter `form` is read from form fields, the others are as they were."""
    if parameter.name != "form":
        return parameter
    model = parameter.annotation
    read = _form_reader(model)
    return parameter.replace(annotation=Annotated[model, Depends(read)])


def _form_reader(model: type[BaseModel]) -> Callable[[Request], Awaitable[BaseModel]]:
    async def read(request: Request) -> BaseModel:
        fields = _fields(await form_of(request), model)
        try:
            return model.model_validate(fields)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    return read


def _fields(form: FormData, model: type[BaseModel]) -> dict[str, Any]:
    """What a form says; what was left empty is not said. A field of which a form may have several
    is a list."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(form.keys()):
        values = [value for value in form.getlist(name) if isinstance(value, str) and value]
        if name == TOKEN_FIELD or not values:
            continue
        found[name] = values if _is_list(model, name) else values[-1]
    return found


def _is_list(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    origin = getattr(field.annotation, "__origin__", None) if field else None
    return origin in (list, tuple, set)
