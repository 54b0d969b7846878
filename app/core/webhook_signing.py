"""The bytes of an event and their signature, after Standard Webhooks 1.0. Knows no row and no connection."""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from datetime import datetime

from app import __version__
from app.core.clock import unix

_PREFIX = "whsec_"


def new_secret() -> str:
    """256 random bits, in the form that receivers' libraries take."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def hint(secret: str) -> str:
    """Enough to tell two secrets apart, too little to use one."""
    return f"{_PREFIX}...{secret.rstrip('=')[-4:]}"


def event_body(event_id: str, event_type: str, subject: str, created_at: datetime) -> bytes:
    """The same bytes in every retry."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": unix(created_at),
        "type": event_type,
        "data": {"id": subject},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def signed_headers(event_id: str, body: bytes, signing: Sequence[str], now: datetime) -> dict[str, str]:
    """One signature a secret: while two are valid, a receiver that knows either is content."""
    timestamp = str(unix(now))
    content = b".".join((event_id.encode(), timestamp.encode(), body))
    return {
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{_signature(secret, content)}" for secret in signing),
        "content-type": "application/json",
        "user-agent": f"Modelwright/{__version__}",
    }


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
