"""`python -m ckp.standalone` is the one-file tool without its file."""

import sys

from ckp.standalone.tool import main

sys.exit(main())
