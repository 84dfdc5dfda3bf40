"""`python -m zpruner`."""

from zpruner.cli import main

main()
