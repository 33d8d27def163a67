import gc
import sys

# Garbage collections during imports find next to nothing and take a fifth of the time. web.server enables them again.
gc.disable()

from dieservice.app import create_app
from dieservice.settings import Settings
from dieservice.telemetry import SERVICE
from web.server import main

if __name__ == "__main__":
    sys.exit(main(SERVICE, Settings.read, create_app))
