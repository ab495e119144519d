"""How nbval runs the chapters."""

from __future__ import annotations

from nbval.kernel import RunningKernel


def execute_with_history(self, cell_input, allow_stdin=None):
    """Without history, IPython cannot see the ``;`` that silences the last value of a cell."""
    options = {"allow_stdin": allow_stdin, "stop_on_error": False}
    return self.kc.execute(cell_input, store_history=True, **options)


RunningKernel.execute_cell_input = execute_with_history
