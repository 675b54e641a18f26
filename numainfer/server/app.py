"""The server's paths as a Starlette application."""

import asyncio
import base64
import time

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from . import asked, shapes
from .answering import answer
from .fields import read_object
from .http import Gone, Reply, header, read_body, to_json, while_connected
from .refusals import Refusal, of_answer, of_request

LEFT = 499  # status in the metrics of a client that did not wait


def application(service, origins=()):
    """The application.

    Parameters
    ----------
    service : Service
    origins : sequence of str
        Web pages of these origins may use it from browsers; by default none may.

    Returns
    -------
    Starlette
    """
    routes = [
        Route("/v1/chat/completions", _Post(service, "/v1/chat/completions", _chat), methods=["POST"]),
        Route("/v1/completions", _Post(service, "/v1/completions", _completion), methods=["POST"]),
        Route("/v1/embeddings", _Post(service, "/v1/embeddings", _embeddings), methods=["POST"]),
        Route("/v1/models", _Get(service, "/v1/models", _models), methods=["GET"]),
        Route("/v1/models/{name:path}", _Get(service, "/v1/models", _models), methods=["GET"]),
        Route("/health", _Get(service, "/health", _health, needs_key=False), methods=["GET"]),
        Route("/metrics", _Get(service, "/metrics", _metrics), methods=["GET"]),
    ]
    middleware = [Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
                             allow_headers=["Authorization", "Content-Type"])] if origins else []  # fmt: skip
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _no_such_path})


class _Path:
    """One path: it lets the right clients in, and tells every failure in OpenAI's form."""

    def __init__(self, service, path, work, needs_key=True):
        self.service, self._path, self.work, self._needs_key = service, path, work, needs_key

    async def __call__(self, scope, receive, send):
        started, reply = time.monotonic(), Reply(send, self.service.limits.stall)
        status = LEFT
        try:
            try:
                if self._needs_key:
                    self.service.check_key(scope)
                await self.reply(scope, receive, reply)
            except (Gone, asyncio.CancelledError):
                raise
            except Exception as e:  # the client is told; what nobody foresaw is in the log
                await reply.refuse(of_answer(e))
            status = reply.status
        except Gone:
            pass
        finally:
            self.service.metrics.request(self._path, status, started)


class _Get(_Path):
    async def reply(self, scope, receive, reply):
        await self.work(self.service, scope, reply)


class _Post(_Path):
    async def reply(self, scope, receive, reply):
        service = self.service
        service.check_open()
        kind = (header(scope, "content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a page of some other site can send without asking is not this
            raise Refusal(415, f"Content-Type: found {kind or 'none'!r}, wanted 'application/json'", "unsupported_media_type")
        body = await read_body(scope, receive, service.limits.body, service.limits.stall)
        await while_connected(receive, self.work(service, body, reply))


async def _read(service, body, read):
    """What ``read`` makes of a body, in another thread: a long prompt holds nobody up."""

    def work():
        try:
            return read(service, read_object(body))
        except Exception as e:
            raise of_request(e) or e from e

    return await asyncio.to_thread(work)


async def _chat(service, body, reply):
    wanted = await _read(service, body, asked.chat)
    await answer(service, wanted, shapes.Chat(service.names[0], service.model.tokenizer), reply)


async def _completion(service, body, reply):
    wanted = await _read(service, body, asked.completion)
    await answer(service, wanted, shapes.Text(service.names[0], service.model.tokenizer), reply)


async def _embeddings(service, body, reply):
    texts, pooling, packed = await _read(service, body, asked.embedding)
    data = []
    for i, ids in enumerate(texts):
        vector = await service.embed(ids, pooling)
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        vector = (vector / (norm or 1.0)).astype("<f4")
        data.append({"object": "embedding", "index": i,
                     "embedding": base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()})  # fmt: skip
    n = sum(map(len, texts))
    await reply.whole({"object": "list", "data": data, "model": service.names[0], "usage": {"prompt_tokens": n, "total_tokens": n}})


async def _models(service, scope, reply):
    known = {"object": "model", "created": int(service.loaded_at), "owned_by": "numainfer"}
    wanted = scope["path_params"].get("name")
    if wanted is None:
        await reply.whole({"object": "list", "data": [{"id": name, **known} for name in service.names]})
    elif wanted in service.names:
        await reply.whole({"id": wanted, **known})
    else:
        raise Refusal(404, f"model = {wanted!r}: this server has {service.names[0]!r}", "model_not_found", "model")


async def _health(service, scope, reply):
    if service.ending or service.model.closed:
        await reply.whole({"status": "ending"}, 503)
    else:
        await reply.whole({"status": "ok"})


async def _metrics(service, scope, reply):
    page, kind = service.metrics.page()
    await reply.whole(page, kind=kind)


async def _no_such_path(request, error):
    where = f"{request.method} {request.url.path}"
    message = f"{where}: there is no such path" if error.status_code == 404 else f"{where}: {error.detail}"
    headers = dict(error.headers or {}) | {"Content-Type": "application/json"}
    return Response(to_json(Refusal(error.status_code, message).to_dict()), error.status_code, headers)
