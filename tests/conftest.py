"""Shapes and types in signatures are checked while the tests run."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

install_import_hook("lossbook", "beartype.beartype").install()
