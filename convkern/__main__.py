"""``python -m convkern``: the command line without the script."""

import sys

from convkern.cli import main

if __name__ == "__main__":
    sys.exit(main())
