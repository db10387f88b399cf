import sys

from d2lres.cli import main

if __name__ == "__main__":
    sys.exit(main())
