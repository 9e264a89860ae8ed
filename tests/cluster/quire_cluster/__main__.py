"""python -m quire_cluster"""

import sys

from quire_cluster.cli import main

sys.exit(main())
