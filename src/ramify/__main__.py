"""``python -m ramify`` is the command line."""

import sys

from ramify.cli import main

if __name__ == "__main__":
    sys.argv[0] = "ramify"  # what reports show as the command
    main()
