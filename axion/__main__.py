"""`python -m axion` is `axion serve`; with arguments it is `axion` with them."""

import sys

from axion.cli.main import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["serve"])
