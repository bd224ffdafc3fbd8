"""`python -m megopt`: the same as the command `megopt`."""

from megopt.cli import main

raise SystemExit(main())
