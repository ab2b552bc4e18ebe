"""`python -m axion` is `axion serve`, with flags too; with other arguments it is `axion`."""

import sys

from axion.cli.main import main

_OWN_FLAGS = ("-h", "--help", "--version", "--install-completion", "--show-completion")


def _serves(arguments: list[str]) -> bool:
    return not arguments or (arguments[0].startswith("-") and arguments[0] not in _OWN_FLAGS)


if __name__ == "__main__":
    main(["serve"] * _serves(sys.argv[1:]) + sys.argv[1:])
