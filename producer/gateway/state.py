"""What all requests of a gateway share."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from ..aio import AsyncClient
from .chat import Chat
from .keys import Keys
from .metrics import Metrics


@dataclass(frozen=True)
class State:
    """`connection`: for commands that only threads send."""

    keys: Keys
    client: AsyncClient
    connection: redis.Redis
    chat: Chat
    metrics: Metrics
