"""`python -m app.plan`; the command itself is in app/commands/plan.py."""

import sys

from app.commands.plan import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
