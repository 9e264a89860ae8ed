"""`quire-engine serve` around fake_core.py: `serve_fake.py SETTINGS_JSON CONFIG_JSON`."""

import sys
from pathlib import Path

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.serve import serve
from quire_engine.settings import ServerSettings
from quire_engine.termination import report_fatal

FAKE_CORE = Path(__file__).parent / "fake_core.py"

if __name__ == "__main__":
    end = serve(
        msgspec.json.decode(sys.argv[1], type=ServerSettings),
        msgspec.json.decode(sys.argv[2], type=EngineConfig),
        core_command=(sys.executable, str(FAKE_CORE)),
    )
    if end is not None:
        report_fatal(end.reason, end.message)
        sys.exit(end.exit_code)
