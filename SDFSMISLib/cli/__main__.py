"""`python -m SDFSMISLib.cli`, the same as `sdfsmis`."""

import sys

from SDFSMISLib.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
