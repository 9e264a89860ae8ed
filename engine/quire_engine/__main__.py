"""`python -m quire_engine` is `quire-engine`."""

from quire_engine.cli import main

main()
