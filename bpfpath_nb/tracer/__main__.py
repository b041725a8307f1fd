"""The command: a watchdog first, while the process is small and has nothing open; then the service."""

import sys

from bpfpath_nb.tracer import watchdog


def main() -> int:
    """Run the tracer."""
    watchdog.start()
    from bpfpath_nb.tracer import service

    return service.main()


if __name__ == "__main__":
    sys.exit(main())
