"""Starting, watching and stopping the services, each by its process id."""

import ctypes
import itertools
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import psutil

from geokr_core.step.files import write_json
from stack import prepare
from stack.errors import StackError
from stack.services import WORKING_DIRECTORY, Ports, Service, free_ports, services_of
from stack.settings import DOCKER, Settings, make_secrets

START_SECONDS = 300.0
"""That a service has to become healthy. MLflow takes some 20 s on two free cores, a minute where they are busy."""

STATE = "state.json"
"""In the stack's folder: process ids and ports of the stack that runs."""

_KEEP_LOG_BYTES = 10 * 2**20
_CALM_SECONDS = 60.0
_LOOK_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("stack")


@dataclass
class Running:
    """A service that was started.

    Attributes:
        service: what it is.
        process: the process of the last start.
        restarts: how often it was started again.
        not_before: monotonic time of the next start, if it is down.
        silent_since: monotonic time at which it was first found unhealthy, if it is.
    """

    service: Service
    process: subprocess.Popen[bytes]
    started: float
    restarts: int = 0
    not_before: float = 0.0
    silent_since: float = 0.0


@dataclass
class Stack:
    """The stack of some settings.

    Attributes:
        settings: of the settings file.
        ports: where the services listen.
    """

    settings: Settings
    ports: Ports
    running: dict[str, Running] = field(default_factory=dict)
    stopping: bool = False

    def start(self) -> None:
        """Start everything, each service when those that it needs are healthy.

        Raises:
            StackError: a program is missing, a stack runs in the same folder, or a service does not become healthy.
        """
        _refuse_a_second_one(self.settings.folder)
        make_secrets(self.settings.secrets)
        services = services_of(self.settings, self.ports)
        prepare.before_start(self.settings, self.ports, services)
        waiting, healthy = list(services), set[str]()
        deadlines: dict[str, float] = {}
        while len(healthy) < len(services) and not self.stopping:
            for service in [one for one in waiting if set(one.needs) <= healthy]:
                self._launch(service)
                deadlines[service.name] = time.monotonic() + START_SECONDS
                waiting.remove(service)
            for name in [name for name in deadlines if name not in healthy]:
                self._wait_for(name, deadlines[name], healthy)
            time.sleep(0.25)

    def _wait_for(self, name: str, deadline: float, healthy: set[str]) -> None:
        entry = self.running[name]
        if (code := entry.process.poll()) is not None:
            raise StackError(f"{name} ended with code {code} at its start:\n{_last_lines(self._log(name))}")
        if entry.service.healthy():
            if (then := prepare.AFTER_START.get(name)) is not None:
                then(self.settings, self.ports)
            healthy.add(name)
            log.info("%s is healthy (%.0f s)", name, time.monotonic() - entry.started)
        elif time.monotonic() > deadline:
            raise StackError(f"{name} is not healthy after {START_SECONDS:.0f} s:\n{_last_lines(self._log(name))}")

    def watch(self) -> None:
        """Start again what has ended or answers no more; return when the stack is told to stop."""
        looked = time.monotonic()
        while not self.stopping:
            for entry in self.running.values():
                if entry.process.poll() is not None:
                    self._revive(entry)
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                self._look_at(next(self._rounds))
            time.sleep(0.5)

    @cached_property
    def _rounds(self) -> Iterator[str]:
        """The names of all services, over and over: one is asked at a time."""
        return itertools.cycle(list(self.running))

    def _look_at(self, name: str) -> None:
        """Stop a service that has been unhealthy for too long; `_revive` starts it again."""
        entry, now = self.running[name], time.monotonic()
        if entry.process.poll() is not None or entry.service.healthy():
            entry.silent_since = 0.0
        elif not entry.silent_since:
            entry.silent_since = now
        elif now - entry.silent_since > entry.service.silence_seconds + entry.service.stop_seconds:
            log.warning("%s does not stop: killed", name)
            entry.process.kill()
        elif now - entry.silent_since > entry.service.silence_seconds:
            log.warning("%s has not answered for %.0f s: stopped", name, now - entry.silent_since)
            entry.process.send_signal(_stop_signal(entry.service))

    def _revive(self, entry: Running) -> None:
        now, name = time.monotonic(), entry.service.name
        if not entry.not_before:
            entry.restarts = 0 if now - entry.started > _CALM_SECONDS else entry.restarts
            wait = min(2.0**entry.restarts, 30.0)
            entry.not_before = now + wait
            _end_orphans(entry.process.pid)
            log.warning("%s ended with code %s; started again in %.0f s", name, entry.process.returncode, wait)
        elif now >= entry.not_before:
            restarts = entry.restarts + 1
            self._launch(entry.service)
            self.running[name].restarts = restarts
            self._write_state()

    def stop(self) -> None:
        """Stop what runs, in the reverse order of its start: SIGTERM to each by its id, SIGKILL after its time is over."""
        self.stopping = True
        for entry in reversed(self.running.values()):
            family = _family(entry.process.pid)
            if entry.process.poll() is None:
                entry.process.send_signal(_stop_signal(entry.service))
                try:
                    entry.process.wait(timeout=entry.service.stop_seconds)
                except subprocess.TimeoutExpired:
                    log.warning("%s did not stop within %.0f s: killed", entry.service.name, entry.service.stop_seconds)
                    entry.process.kill()
                    entry.process.wait()
            for child in psutil.wait_procs(family, timeout=10)[1]:
                child.kill()
            log.info("%s has stopped", entry.service.name)
        (self.settings.folder / STATE).unlink(missing_ok=True)

    def _launch(self, service: Service) -> None:
        path = self._log(service.name)
        if path.exists() and path.stat().st_size > _KEEP_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        as_user = service.user if os.geteuid() == 0 else None
        with path.open("ab") as stream:
            process = subprocess.Popen(
                [str(DOCKER / "with-secrets"), *service.command],
                cwd="/" if as_user else WORKING_DIRECTORY,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **service.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                user=as_user,
                group=as_user,
                extra_groups=[] if as_user else None,
                start_new_session=True,
                preexec_fn=_in_the_child,
            )
        self.running[service.name] = Running(service, process, time.monotonic())
        self._write_state()

    def _log(self, name: str) -> Path:
        return self.settings.folder / "logs" / f"{name}.log"

    def _write_state(self) -> None:
        services = {
            name: {"pid": entry.process.pid, "restarts": entry.restarts} for name, entry in self.running.items()
        }
        write_json(
            self.settings.folder / STATE,
            {"supervisor": os.getpid(), "services": services, "ports": asdict(self.ports)},
        )


def stack_of(settings: Settings) -> Stack:
    """A stack that is not started yet."""
    return Stack(settings, free_ports(settings))


def _stop_signal(service: Service) -> signal.Signals:
    # PostgreSQL takes SIGTERM as "when all clients have gone", and SIGINT as "now, in good order".
    return signal.SIGINT if service.name == "postgres" else signal.SIGTERM


def _in_the_child() -> None:
    # Started from a script in the background, a process inherits an ignored SIGINT, and Dagster then ignores SIGTERM as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # If the supervisor is killed outright, no service stays behind to hold its files and ports.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _refuse_a_second_one(folder: Path) -> None:
    state = folder / STATE
    if not state.is_file():
        return
    supervisor = int(json.loads(state.read_text(encoding="utf-8"))["supervisor"])
    if psutil.pid_exists(supervisor) and supervisor != os.getpid():
        raise StackError(f"A stack runs in {folder} already (process {supervisor}); stop it with: kill {supervisor}")


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end_orphans(session: int) -> None:
    """End what a service that died left behind, as a container does: its successor would share runs and ports with it."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGTERM)


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
