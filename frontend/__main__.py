import gc
import sys

# Garbage collections during imports find next to nothing and take a fifth of the time. web.server enables them again.
gc.disable()

from frontend.app import create_app
from frontend.settings import Settings
from frontend.telemetry import SERVICE
from web.server import main

if __name__ == "__main__":
    # A page load fetches a dozen static files; their traces would hide those of the rolls.
    sys.exit(main(SERVICE, Settings.read, create_app, untraced_paths=["^/static/"]))
