"""`python -m app.cuts`; the command itself is in app/commands/cuts.py."""

import sys

from app.commands.cuts import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
