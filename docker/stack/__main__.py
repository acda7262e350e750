"""The command line of the stack.

``python -m stack up`` starts it and stays with it; ``secrets`` only makes the secret files; ``accounts`` makes those of an
MLflow server that runs, which compose asks for; ``pin-images`` writes digests beside the tags of compose's images.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from geokr_core.errors import GeoKRError
from stack.images import pin_images
from stack.prepare import make_accounts
from stack.processes import Stack, stack_of
from stack.settings import SETTINGS, make_secrets, read_settings

log = logging.getLogger("stack")


def main() -> int:
    """Start the stack, or make its secrets."""
    parser = argparse.ArgumentParser(prog="stack", description="The production stack as processes of one machine.")
    parser.add_argument("what", choices=["up", "secrets", "accounts", "pin-images"])
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="settings file (%(default)s)")
    parser.add_argument("--server", help="MLflow server, for `accounts`")
    parser.add_argument("--secrets", type=Path, help="folder of secret files, for `accounts`")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if arguments.what == "accounts":
            make_accounts(arguments.server, arguments.secrets)
            return 0
        if arguments.what == "pin-images":
            for image in pin_images(arguments.settings):
                log.info("%s", image)
            return 0
        settings = read_settings(arguments.settings)
        if arguments.what == "secrets":
            make_secrets(settings.secrets)
            log.info("secrets are in %s", settings.secrets)
            return 0
        return _up(stack_of(settings))
    except GeoKRError as error:
        log.error("%s", error)  # noqa: TRY400  # the sentence is for people; the traceback is not
        return 2


def _up(stack: Stack) -> int:
    def stop(_number: int, _frame: FrameType | None) -> None:
        stack.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        stack.start()
        if not stack.stopping:
            host, ports, secrets = stack.settings.guard_names[0], stack.ports, stack.settings.secrets
            log.info(
                "Dagster  http://%s:%s   user operator, password in %s", host, ports.dagster, secrets / "guard_operator"
            )
            log.info(
                "MLflow   http://%s:%s   user pipeline, reader or admin, passwords in %s",
                host,
                ports.mlflow,
                secrets / "mlflow_*",
            )
            log.info("S3       http://127.0.0.1:%s   key geokr, secret in %s", ports.s3, secrets / "s3_secret_key")
            log.info(
                "Ready. Ctrl-C, or `kill` of this process, stops everything; logs are in %s",
                stack.settings.folder / "logs",
            )
        stack.watch()
    finally:
        stack.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
