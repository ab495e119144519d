"""Speed and memory, always as a ratio to a peer that is measured in the same run.

``python -m benchmarks`` (or ``make bench``) runs every module here that has a function

    run() -> list[Row]

and prints the rows. To add a benchmark, write ``benchmarks/<subject>.py`` with that function:
build the contestants as functions without arguments that do the same work, let
:func:`benchmarks.timing.race` time them in turns, and return one
:class:`benchmarks.timing.Row` per comparison. A function ``run`` imports what it needs itself,
so that a missing peer costs its own rows and no others. Nothing here runs in the test suite:
a ratio is a measurement of a machine, not a property of the code.
"""
