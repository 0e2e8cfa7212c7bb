"""`python -m torchrl_shm` is `torchrl-shm`."""

import sys

from torchrl_shm.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
