"""The machine and the interpreter that a node runs on: limits, ports, clocks, versions."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from raftstate.address import join_address, split_address
from raftstate.config import NodeSettings
from raftstate.doctor.finding import Finding, failed, note, ok, warning
from raftstate.errors import ConfigError

FILES_MIN = 1_024
"""Peers, reads and files take some hundred; the rest is for clients' connections."""
FILES_GOOD = 8_192
MEMORY_MIN_BYTES = 512 << 20
"""A node's own memory stays below 300 MB; the rest is for the page cache, of which reads live."""
CPUS_GOOD = 2
CONNECT_S = 1.0
PACKAGES = ("grpcio", "lmdb", "msgspec", "protobuf", "uvloop")


def look(settings: NodeSettings | None) -> Iterator[Finding]:
    """Yield what is found on this machine; with `settings` also at the node's ports."""
    yield versions()
    yield judge_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    maps = settings.log_map_bytes + settings.state_map_bytes if settings is not None else 0
    yield judge_address_space(resource.getrlimit(resource.RLIMIT_AS)[0], maps, sys.maxsize > 1 << 32)
    yield judge_memory(memory_bytes())
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield (
        ok("processors", f"{cpus}")
        if cpus >= CPUS_GOOD
        else warning("processors", f"{cpus}", "a node that shares one with others answers late: give it two")
    )
    yield from clocks(dict(vars(time)))
    yield from kernel()
    if settings is not None:
        yield from ports(settings)


def versions() -> Finding:
    """Say what runs here."""
    found = [f"Python {platform.python_version()}"]
    missing = []
    for package in ("raftstate", *PACKAGES):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return failed("versions", ", ".join(found), f"install {', '.join(missing)}")
    return ok("versions", ", ".join(found))


def judge_files(soft: int, hard: int) -> Finding:
    """Say what to think of the limit of open files."""
    if soft == resource.RLIM_INFINITY or soft >= FILES_GOOD:
        return ok("open files", "any number" if soft == resource.RLIM_INFINITY else f"{soft}")
    shown = "any" if hard == resource.RLIM_INFINITY else str(hard)
    advice = f"raise it (ulimit -n, LimitNOFILE=) to {FILES_GOOD}; it may be {shown} here"
    return (failed if soft < FILES_MIN else warning)("open files", f"{soft}", advice)


def judge_address_space(limit: int, maps_bytes: int, is_64_bit: bool) -> Finding:
    """Say what to think of the address space, given the sizes of the node's memory maps."""
    check = "address space"
    if not is_64_bit:
        return failed(check, "this Python has 32 bits", "use one of 64 bits: the files are mapped whole")
    if limit == resource.RLIM_INFINITY:
        return ok(check, "any size")
    needed = maps_bytes + MEMORY_MIN_BYTES
    found = f"{limit / 1e9:,.1f} GB; the maps take {maps_bytes / 1e9:,.1f} GB"
    if limit < needed:
        return failed(
            check, found, "take the limit away (ulimit -v), or lower log_map_bytes and state_map_bytes"
        )
    return ok(check, found)


def memory_bytes() -> int:
    """Return how much memory this process may use: of the machine, or of its control group."""
    total: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (Path("/sys/fs/cgroup") / name).read_text("ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            total = min(total, int(limit))
    return total


def judge_memory(total_bytes: int) -> Finding:
    """Say what to think of the memory."""
    found = f"{total_bytes / 1e9:,.1f} GB"
    if total_bytes < MEMORY_MIN_BYTES:
        return warning("memory", found, f"a node wants {MEMORY_MIN_BYTES / 1e6:,.0f} MB, page cache included")
    return ok("memory", found)


def clocks(names: Mapping[str, object]) -> Iterator[Finding]:
    """Say whether the clocks are there that leases and staleness bounds live by; `names`: of module time."""
    missing = [name for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW") if name not in names]
    if missing:
        yield warning(
            "clocks",
            f"this system has no {' and no '.join(missing)}",
            "bounds of staleness do not count what the machine slept, and leases go by a clock that is"
            " slewed: run nodes on Linux",
        )
    else:
        yield ok("clocks", "CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW")


def kernel() -> Iterator[Finding]:
    """Say what of the kernel's settings matters."""
    yield note("kernel", f"{platform.system()} {platform.release()} {platform.machine()}")
    try:
        huge = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text("ascii")
    except OSError:
        return
    chosen = huge[huge.find("[") + 1 : huge.find("]")]
    if chosen == "always":
        yield note("huge pages", chosen, "madvise spares the process memory that it does not use")
    else:
        yield ok("huge pages", chosen)


def ports(settings: NodeSettings) -> Iterator[Finding]:
    """Say whether the node's ports are free, or the node listens there already."""
    listeners = {"client port": settings.client_listener, "peer port": settings.peer_listener}
    metrics = settings.metrics_listener
    if metrics is not None and metrics[1]:
        listeners["metrics port"] = join_address(*metrics)
    for check, address in listeners.items():
        yield look_at_port(check, *split_address(address))


def look_at_port(check: str, host: str, port: int) -> Finding:
    """Say whether a port can be listened on, or who knows who does."""
    shown = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return failed(check, f"{shown}: {error.strerror}", "name an address of this machine")
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            return ok(check, f"{shown} is free")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return failed(
                    check, f"{shown}: {error.strerror}", "name an address and a port of this machine"
                )
    try:
        with socket.create_connection((host, port), CONNECT_S):
            return note(check, f"{shown} is listened on", "by this node, if it runs; else stop who does")
    except OSError as error:
        return failed(
            check, f"{shown} is taken, and does not answer ({error.strerror or error})", "stop who holds it"
        )


def settings_finding(error: ConfigError) -> Finding:
    """Say what is wrong with the settings."""
    return failed("settings", error.message, "correct them")
