"""Run the alert receiver: ``python -m alertreceiver``."""

import gc
import sys

# Garbage collections during imports find next to nothing and take a fifth of the time. web.helper enables them again.
gc.disable()

from alertreceiver.app import SERVICE, create_app
from alertreceiver.settings import Settings
from web.helper import main

if __name__ == "__main__":
    sys.exit(main(SERVICE, Settings.read, create_app))
