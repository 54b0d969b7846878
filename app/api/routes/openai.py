"""`/v1/embeddings` and `/v1/moderations`: predictions in OpenAI's shapes."""

from base64 import b64encode
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Response

from app.api.deps import CallerDep, JsonAnswer, ServicesDep, StickyKey, requires, servable
from app.api.hot import hot
from app.api.schemas.openai import EmbeddingBody, EmbeddingList, ModerationBody, ModerationList, ModerationResult
from app.core.errors import InvalidRequest
from app.core.ids import new_id
from app.services.embeddings import floats, vectors
from app.services.moderations import THRESHOLD, scores

router = APIRouter(tags=["openai"], prefix="/v1")

Timeout = Annotated[int | None, Header(ge=1, le=600_000)]


@router.post("/embeddings", dependencies=[requires("predict")], response_model=EmbeddingList)
@hot
async def create_embeddings(
    body: EmbeddingBody, services: ServicesDep, caller: CallerDep, x_request_timeout_ms: Timeout = None
) -> Response:
    """Sentence vectors of length 1. The first call to a base model waits for its export, once."""
    version = await servable(services, body.model, x_request_timeout_ms, body.user)
    found = await services.embeddings.embed(
        version, body.input, body.dimensions, x_request_timeout_ms, caller=caller.key_id
    )
    rows = vectors(found, body.dimensions)
    tokens = found.reply.tokens
    answer = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": b64encode(row).decode() if body.encoding_format == "base64" else floats(row),
            }
            for index, row in enumerate(rows)
        ],
        "model": version.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    # 1,024 vectors of 384 numbers: 18 ms here, 230 ms with `json`, and nothing else runs meanwhile.
    return JsonAnswer(msgspec.json.encode(answer))


@router.post("/moderations", dependencies=[requires("predict")], response_model=ModerationList)
@hot
async def create_moderations(
    body: ModerationBody,
    services: ServicesDep,
    caller: CallerDep,
    x_request_timeout_ms: Timeout = None,
    x_sticky_key: StickyKey = None,
) -> Response:
    """Each label of a trained classifier as a category, with its score; flagged where one reaches 0.5."""
    if body.model is None:
        raise InvalidRequest(
            "model: there is no default: name a trained text classifier of several labels (GET /v1/models lists them)",
            code="missing_field",
            param="model",
        )
    version = await servable(services, body.model, x_request_timeout_ms, x_sticky_key)
    texts = [body.input] if isinstance(body.input, str) else body.input
    found = await services.moderations.moderate(version, texts, x_request_timeout_ms, caller=caller.key_id)
    results = [ModerationResult.of(row, THRESHOLD) for row in scores(found)]
    return JsonAnswer(ModerationList(id=new_id("modr-"), model=version.name, results=results).model_dump_json())
