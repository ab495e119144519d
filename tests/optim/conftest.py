"""The problem on which wrong optimizers differ, and the walks through it, for every test here."""

from __future__ import annotations

import types

import pytest
import trajectories


@pytest.fixture
def hostile() -> trajectories.Problem:
    return trajectories.Problem.hostile()


@pytest.fixture
def tools() -> types.ModuleType:
    return trajectories
