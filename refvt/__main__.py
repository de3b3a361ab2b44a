"""``python -m refvt`` and the command ``refvt``."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; Ctrl-C before and after it ends the process without a traceback, too."""
    try:
        import signal

        from refvt.cli import main as run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be saved
    except KeyboardInterrupt:
        print("refvt: interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
