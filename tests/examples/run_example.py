"""Runs an example in one of several processes, and leaves at once: at shutdown, torch's gloo may abort it."""

import os
import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    os._exit(0)
