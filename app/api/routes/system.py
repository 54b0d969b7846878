"""Probes, metrics and the front page."""

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.api.deps import ServicesDep, requires
from app.api.schemas.health import CheckObject, Readiness

router = APIRouter(tags=["system"])

_FRONT = f"""<!doctype html><title>Modelwright</title>
<h1>Modelwright {__version__}</h1>
<p>Fine-tune, compress and serve transformer models on your own machines.</p>
<ul><li><a href="/docs">API documentation</a></li><li><a href="/health/ready">readiness</a></li></ul>"""


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def front_page() -> HTMLResponse:
    return HTMLResponse(_FRONT)


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """This process answers. Depends on nothing else: restarting it would not mend another server."""
    return {"live": True}


@router.get("/health/ready", responses={503: {"model": Readiness}})
async def ready(services: ServicesDep) -> Response:
    """Whether Postgres, Valkey, a trainer and an inference worker are all there; 503 says what is not."""
    checks = await services.health.checks()
    answer = Readiness(
        ready=all(c.ok for c in checks),
        checks={c.name: CheckObject(ok=c.ok, detail=c.detail) for c in checks},
    )
    return JSONResponse(answer.model_dump(), *((200,) if answer.ready else (503, {"retry-after": "2"})))


@router.get("/metrics", dependencies=[requires("read")], response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus text format."""
    services.metrics.queue_waiting.set(await services.plane.waiting())
    text = await run_in_threadpool(services.metrics.render)  # 0.16 s for 100 versions in four processes
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
