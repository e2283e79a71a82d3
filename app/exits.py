"""`python -m app.exits`; the command itself is in app/commands/exits.py."""

import sys

from app.commands.exits import main
from tracking.text import tolerant

if __name__ == "__main__":
    tolerant()
    sys.exit(main())
