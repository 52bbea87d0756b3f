"""etcd's interaction format: a cluster in one process, moved step by step, that prints all it does."""

from __future__ import annotations

from tests.transcripts.interaction.environment import Environment

__all__ = ["Environment"]
