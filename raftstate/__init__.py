"""raftstate: a replicated state store for Python programs that must not forget."""
