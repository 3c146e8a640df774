"""An inference service of your own, in FastAPI: ``BUNDLE=demo/lenet5-fp16 uvicorn --app-dir examples service:app``."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request

from engineworks import runtime


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    """Load once, in the process that serves; warm up before the first caller comes."""
    with runtime.load(os.environ["BUNDLE"], nan="refuse") as model:
        model.warmup()
        app.state.model = model
        yield


app = FastAPI(lifespan=life)


async def body(request: Request) -> bytes:
    """Read the picture that is the body."""
    return await request.body()


def prepared(request: Request, picture: Annotated[bytes, Depends(body)]) -> Any:
    """Prepare it as the bundle says; FastAPI runs what is not async in a thread."""
    try:
        return request.app.state.model.preprocess(picture)
    except runtime.InputError as error:
        raise HTTPException(400, str(error)) from error


@app.post("/scores")
async def scores(request: Request, row: Annotated[Any, Depends(prepared)]) -> list[float]:
    """Return the network's own scores; callers share batches."""
    try:
        answer = await request.app.state.model.ainfer(row, timeout=5.0)
    except (runtime.QueueFullError, runtime.DeadlineError) as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    return [float(score) for score in answer[0]]


@app.post("/classify")
def classify(request: Request, picture: Annotated[bytes, Depends(body)], k: int = 3) -> list[dict[str, Any]]:
    """Name what is in the picture, best first."""
    try:
        found = request.app.state.model.classify(picture, k)[0]
    except runtime.InputError as error:
        raise HTTPException(400, str(error)) from error
    return [{"label": one.label, "probability": one.probability} for one in found]
