"""`python -m quire_operator`: runs the operator until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvloop

from quire_operator import main, settings
from quire_operator.errors import QuireError


def run() -> int:
    """0 after SIGTERM; 2 for bad settings; 1 when the lease is lost or the cluster is no use."""
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    # One line for each watched event is kopf's habit; ours are the actions.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        wanted = settings.from_environment(os.environ)
    except QuireError as e:
        logging.getLogger(__name__).error("quire-operator: %s", e)
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main.run(wanted))
    except QuireError as e:
        logging.getLogger(__name__).error("quire-operator: %s", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
