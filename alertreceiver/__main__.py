"""Run the alert receiver: ``python -m alertreceiver``."""

import sys

from alertreceiver.app import SERVICE, create_app
from alertreceiver.settings import Settings
from web.helper import main

if __name__ == "__main__":
    sys.exit(main(SERVICE, Settings.read, create_app))
