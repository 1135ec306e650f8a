"""``python -m plaudit``: the command line, for launchers that take a module (``torchrun -m plaudit score ...``)."""

import sys

from plaudit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
