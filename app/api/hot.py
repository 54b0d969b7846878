"""Hot routes: those whose plain calls skip what FastAPI does (`lane.py`, `refusals.py`).

A hot route stays what FastAPI made of it: method, path, scope, body, headers and endpoint are read off it here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from app.api.deps import declared_scope, get_caller, get_services
from app.contracts import scopes

E = TypeVar("E", bound=Callable[..., Any])

_MARK = "modelwright_hot"


def hot(endpoint: E) -> E:
    """Put an endpoint on the lane. It returns a `Response` and takes `services`, `caller`, parts of the path, headers,
    and either `body`, a model read from JSON, or the `request`."""
    setattr(endpoint, _MARK, True)
    return endpoint


@dataclass(frozen=True, slots=True)
class HotRoute:
    route: APIRoute
    scope: scopes.Scope
    body: type[BaseModel] | None
    path: tuple[tuple[str, TypeAdapter[Any]], ...]
    """Name, and what it must be."""
    headers: tuple[tuple[bytes, str, TypeAdapter[Any]], ...]
    """Name on the wire, name of the argument, and what it must be."""

    @classmethod
    def of(cls, route: APIRoute) -> "HotRoute":
        """Raises `RuntimeError` for a route that asks for more than the lane gives."""
        wants, scope = route.dependant, declared_scope(route.dependencies)
        named = {d.name: d.call for d in wants.dependencies if d.name}
        bodies: dict[str, Any] = {field.name: field.field_info.annotation for field in wants.body_params}
        reads = [*bodies, *([wants.request_param_name] if wants.request_param_name else [])]
        fits = named == {"services": get_services, "caller": get_caller} and reads in (["body"], ["request"])
        if scope is None or not fits or wants.query_params or wants.cookie_params or route.methods != {"POST"}:
            raise RuntimeError(f"{route.path} cannot be hot: see `hot` for what the endpoint of such a route takes")
        path = [(field.name, TypeAdapter(field.field_info.rebuild_annotation())) for field in wants.path_params]
        headers = [
            (field.alias.encode(), field.name, TypeAdapter(field.field_info.rebuild_annotation()))
            for field in wants.header_params
        ]
        return cls(route, scope, bodies.get("body"), tuple(path), tuple(headers))

    def arguments(self, found: dict[str, str], headers: dict[bytes, bytes]) -> dict[str, Any]:
        """Those from path and headers. Raises `ValueError`."""
        values = {name: kind.validate_python(found[name]) for name, kind in self.path}
        for wire, name, kind in self.headers:
            if wire in headers:
                values[name] = kind.validate_python(headers[wire].decode("latin-1"))
        return values


class HotRoutes:
    """All of them, by path."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        marked = [r for router in routers for r in router.routes if hasattr(getattr(r, "endpoint", None), _MARK)]
        routes = [HotRoute.of(route) for route in marked if isinstance(route, APIRoute)]
        self._exact = {found.route.path: found for found in routes if not found.path}
        self._templates = [found for found in routes if found.path]
        self._endings = {found.route.path.rpartition("/")[2] for found in self._templates}

    def find(self, path: str) -> tuple[HotRoute, dict[str, str]] | None:
        """The route of a `POST` to `path`, and the parts of the path that it names."""
        if exact := self._exact.get(path):
            return exact, {}
        if path.rpartition("/")[2] in self._endings:
            for found in self._templates:
                if match := found.route.path_regex.match(path):
                    return found, match.groupdict()
        return None
