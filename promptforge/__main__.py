"""`python -m promptforge`."""

from promptforge.cli import main

main()
