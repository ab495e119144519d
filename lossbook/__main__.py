"""``python -m lossbook`` is the ``lossbook`` command."""

from lossbook.cli import main

main()
