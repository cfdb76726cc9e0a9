"""Network namespaces, and processes that run in them.

A process is started in a session of its own (its own scheduling group, so that a busy worker does not starve the
others) by `nsenter --net`, which leaves /sys as it is; it is ended by its process id. A thread may enter a namespace for
as long as it opens sockets. Everything needs root.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time

RUN_NETNS = "/run/netns"
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(Exception):
    """A command ended with another exit code than 0; says what it printed."""


def run(*command, stdin=None, timeout=30, check=True, env=None):
    """Runs a command to its end. Returns the finished process with text output."""
    done = subprocess.run([str(c) for c in command], input=stdin, capture_output=True, text=True, timeout=timeout,
                          env=env)
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise CommandFailed(f"{' '.join(str(c) for c in command)}: exit code {done.returncode}: {said}")
    return done


def set_thread_namespace(fd):
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """A named network namespace, as `ip netns add` makes it."""

    def __init__(self, name):
        self.name = name
        self.path = f"{RUN_NETNS}/{name}"

    def create(self):
        run("ip", "netns", "add", self.name)
        for setting in ("all", "default"):
            # Addresses are given by hand and usable at once.
            self.sysctl(f"net.ipv6.conf.{setting}.accept_dad", 0)
            self.sysctl(f"net.ipv6.conf.{setting}.accept_ra", 0)
        self.ip("link", "set", "lo", "up")
        return self

    def exists(self):
        return os.path.exists(self.path)

    def delete(self):
        if self.exists():
            run("ip", "netns", "del", self.name, check=False)

    def ip(self, *arguments, check=True):
        return run("ip", "-n", self.name, *arguments, check=check)

    def sysctl(self, key, value):
        self.run("sysctl", "-qw", f"{key}={value}")

    def command(self, *command):
        """The command line that runs `command` in here."""
        return ["nsenter", f"--net={self.path}", "--", *[str(c) for c in command]]

    def run(self, *command, **how):
        return run(*self.command(*command), **how)

    @contextlib.contextmanager
    def entered(self):
        """The calling thread is in here while the block runs; sockets it opens stay here."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            set_thread_namespace(there)
            try:
                yield self
            finally:
                set_thread_namespace(home)
        finally:
            os.close(there)
            os.close(home)

    def pids(self):
        found = run("ip", "netns", "pids", self.name, check=False).stdout
        return [int(pid) for pid in found.split()]


class Processes:
    """Every process that was started, its log, and how to end them all."""

    def __init__(self, logs):
        self.logs = logs
        self.started = []

    def start(self, name, namespace, *command):
        """Starts `command` in `namespace`; its output goes to `<logs>/<name>.log` (appended)."""
        with open(f"{self.logs}/{name}.log", "ab") as log:
            process = subprocess.Popen(namespace.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)
        process.title = name
        self.started.append(process)
        return process

    def log(self, name, last=None):
        """The text of a log, or its last so many lines."""
        try:
            with open(f"{self.logs}/{name}.log", encoding="utf-8", errors="replace") as log:
                lines = log.read().splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-last:] if last else lines)

    def end(self, process, patience=5.0):
        """SIGTERM, then SIGKILL after `patience` seconds. Returns whether SIGTERM was enough."""
        gentle = True
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                gentle = False
                process.kill()
                process.wait()
        if process in self.started:
            self.started.remove(process)
        return gentle

    def end_all(self):
        for process in list(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in list(self.started):
            self.end(process, patience=3.0)


def wait_until(what, condition, seconds, every=0.02):
    """Calls `condition` until it gives something true, and returns that with the seconds it took; TimeoutError else."""
    start = time.monotonic()
    while True:
        found = condition()
        took = time.monotonic() - start
        if found:
            return found, took
        if took > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
