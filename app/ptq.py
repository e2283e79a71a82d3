"""`python -m app.ptq`; the command itself is in app/commands/ptq.py."""

import sys

from app.commands.ptq import main

if __name__ == "__main__":
    sys.exit(main())
