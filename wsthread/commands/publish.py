"""Publish to the clients of an application whose managers have a RedisBackplane: from a shell, a cron job, a script.

    wsthread publish redis://localhost --name chat --to lobby "The server restarts at noon."
    tail -f alerts.log | wsthread publish redis://localhost --name chat -
    wsthread publish redis://localhost --name chat --notify '{"logout": 42}'
    wsthread publish redis://localhost --name chat --to "user:42" --close 4401 "logged out"

The command takes the next message when Redis has this one, which reaches all processes once. If Redis does not take it,
the command says so.

Exit status: 0 when all was published; 1 when a message cannot be published; 2 for wrong arguments; 3 when Redis did
not take it in time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable

from ..exceptions import BackplaneFull
from ..publisher import Publisher
from . import target

SUMMARY = "publish a message to the clients of an application, through Redis"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("url", metavar="URL", help="of Redis, as the application's RedisBackplane has it")
    parser.add_argument("message", metavar="MESSAGE", help="the text; - for each line of stdin")
    parser.add_argument("--name", default="default", help="of the managers (default: default)")
    parser.add_argument(
        "--to", metavar="GROUP", action="append", help="whom it is for; may be given again (default: all)")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=target.seconds, default=5.0,
        help="how long Redis may take for each (default: 5)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--notify", action="store_true", help="the message is JSON for on_notify in each process")
    kinds.add_argument("--close", metavar="CODE", type=int, help="close the connections; the message is the reason")


def run(arguments: argparse.Namespace) -> int:
    """Publish; return the exit status."""
    lines: Iterable[str] = [arguments.message]
    if arguments.message == "-":
        lines = (line.removesuffix("\n") for line in sys.stdin)
    try:
        with Publisher(arguments.url, arguments.name, arguments.timeout) as publisher:
            publish = _way(publisher, arguments)
            for line in lines:
                publish(line)
    except (BackplaneFull, ImportError) as error:
        print(error, file=sys.stderr)
        return target.REFUSED
    except TimeoutError as error:
        print(error, file=sys.stderr)
        return target.NOT_REACHED
    return target.DONE


def _way(publisher: Publisher, arguments: argparse.Namespace) -> Callable[[str], None]:
    """Return what publishes one message."""
    if arguments.notify:
        return lambda line: publisher.notify(json.loads(line))
    if arguments.close is not None:
        return lambda line: publisher.close(arguments.to, arguments.close, line)
    return lambda line: publisher.broadcast(line, arguments.to)
