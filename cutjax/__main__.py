"""`python -m cutjax` is the command `cutjax`."""

import sys

from cutjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
