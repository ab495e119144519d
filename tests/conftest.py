"""Shapes and types in signatures are checked while the tests run."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

# An int is as good as a float where a float is asked for.
_checker = types.ModuleType("lossbook_typechecker")
_checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules["lossbook_typechecker"] = _checker

jaxtyping.install_import_hook("lossbook", "lossbook_typechecker.check")


# The same examples on every machine; the first call of anything in torch is slow.
hypothesis.settings.register_profile("book", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("book")


@pytest.fixture
def untyped() -> Iterator[None]:
    """Switch the shape checks off: what does a user see who calls with a wrong shape?"""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
