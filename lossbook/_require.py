"""One way to refuse bad input: name the argument, the value and what was expected."""

from __future__ import annotations


def require(ok: object, argument: str, value: object, expected: str) -> None:
    """Raise a ``ValueError`` that speaks unless ``ok`` is true."""
    if not ok:
        text = repr(value)
        shown = text if len(text) <= 200 else text[:197] + "..."
        raise ValueError(f"{argument}: expected {expected}, got {shown}")
