"""FastAPI as its first page shows it: what a route costs that does nothing."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def root() -> dict[str, str]:
    """A dictionary."""
    return {"message": "Hello World"}
