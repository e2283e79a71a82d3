"""`python -m app.exits`; the command itself is in app/commands/exits.py."""

import sys

from app.commands.exits import main

if __name__ == "__main__":
    sys.exit(main())
