"""`python -m app.export`; the command itself is in app/commands/export.py."""

import sys

from app.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
