"""doctor."""


def doctor() -> None:
    """Look."""
