"""What a training script says, and how it ends, when something stops it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def said(progress: Callable[[], str]) -> Iterator[None]:
    """Run the body of a training script; where it is stopped, say what is saved.

    SIGINT and SIGTERM end the process in order, with the status 128 + the signal's number, after
    one line on stderr. An error keeps its traceback and gets the same line as a note.

    Args:
        progress: says what is saved; asked when the body is stopped.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        name = signal.Signals(number).name
        print(f"\nstopped by {name}: {progress()}; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + number) from None
    except Exception as error:
        error.add_note(progress())
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
