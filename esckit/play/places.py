"""Where the units of a run are played: in this process, or on a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from esckit.config.sections import ModelRecipe, RayExecutor
from esckit.play.executor import Cast, LocalExecutor
from esckit.protocols import Executor
from esckit.roles.pool import ModelPool


@asynccontextmanager
async def executing(recipe: ModelRecipe, limit: int, cast: Cast, *given: Any) -> AsyncIterator[Executor]:
    """Load the models of a run where its recipe wants them, and release them at the end.

    Args:
        recipe: The recipe; its ``executor`` says where.
        limit: Units in flight at once, wherever they are.
        cast: Says who plays.
        given: What ``cast`` needs beside the pool and the recipe; plain data that can be sent to another process.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    if isinstance(recipe.executor, RayExecutor):
        from esckit.play.cluster import on_cluster

        async with on_cluster(recipe, limit, cast, *given) as cluster:
            yield cluster
        return
    async with ModelPool(recipe.executor, recipe.budget, recipe.cache) as pool:
        yield LocalExecutor(pool, await cast(pool, recipe, *given), limit)
