"""`python -m espan`, and so `torchrun -m espan`."""

from espan.cli import main

main()
