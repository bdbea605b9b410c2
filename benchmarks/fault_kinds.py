"""The faults of `store_faults.py`: what is done to a store, and what must come of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.faulty_proxy import Fault, FaultyProxy
from benchmarks.servers import BUCKET, S3

Outcome = Literal["recovered", "error", "recomputed"]
"""The call returned what it should; it raised a clear error, and works afterwards; it computed the output again."""
Phase = Literal["store", "reuse"]
"""The fault lies on the way of a new output, or on that of one that is FINISHED and wanted on another machine."""

FOREVER = 10**6
OBJECT, LISTING = "/artifacts/", "list-type"


@dataclass
class World:
    """What a fault may touch.

    `small`: a home on a small file system of its own, where one could be mounted. `reset_clients` makes boto3 read
    credentials again. `finished`: where the objects of the output in question begin, once there is one.
    """

    s3: S3
    proxy: FaultyProxy
    small: Path | None
    reset_clients: Callable[[], None]
    finished: str = ""


Act = Callable[[World, random.Random], AbstractContextManager[None]]


@dataclass(frozen=True)
class FaultKind:
    """`outcome` is what must come of it. `connected`: a store that was reached before meets it; None: either.

    `full`: its home is the small file system. `stored`: it changes what is stored.
    """

    name: str
    phase: Phase
    outcome: Outcome
    act: Act
    connected: bool | None = True
    full: bool = False
    stored: bool = False


def _proxied(**options: object) -> Act:
    """A fault of the proxy; a pair of numbers is a range to draw from."""

    def act(world: World, rng: random.Random) -> AbstractContextManager[None]:
        drawn: dict[str, object] = {"position": rng.random()}
        for name, value in options.items():
            if isinstance(value, tuple):
                low, high = value
                value = rng.randint(low, high) if isinstance(low, int) else rng.uniform(low, high)
            drawn[name] = value
        return world.proxy.harm(Fault(**drawn))  # type: ignore[arg-type]

    return act


def _away(low: float, high: float) -> Act:
    return lambda world, rng: world.proxy.away(rng.uniform(low, high))


def _gone(world: World, rng: random.Random) -> AbstractContextManager[None]:
    return world.proxy.away()


@contextlib.contextmanager
def _killed(world: World, rng: random.Random) -> Iterator[None]:
    """The S3 server dies by SIGKILL somewhere on the way, and is started again."""
    delay = rng.uniform(0, 0.15)

    def kill() -> None:
        time.sleep(delay)
        world.s3.service.kill()
        world.s3.service.start()

    world.proxy.met = 1
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def _wrong_secret(world: World, rng: random.Random) -> Iterator[None]:
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = "wrong" + right[5:]
    world.reset_clients()
    world.proxy.met = 1
    try:
        yield
    finally:
        os.environ["AWS_SECRET_ACCESS_KEY"] = right
        world.reset_clients()


@contextlib.contextmanager
def _full(folder: Path, rng: random.Random) -> Iterator[None]:
    """Leave less space than one record takes."""
    ballast = folder / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(shutil.disk_usage(folder).free - rng.randint(0, 8) * 1024, 1))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def _full_home(world: World, rng: random.Random) -> Iterator[None]:
    assert world.small is not None
    with _full(world.small, rng):
        world.proxy.met = 1
        yield


@contextlib.contextmanager
def _full_server(world: World, rng: random.Random) -> Iterator[None]:
    with _full(world.s3.folder, rng):
        world.proxy.met = 1
        yield


def _at_rest(change: Callable[[bytes, random.Random], bytes | None], everything: bool = False) -> Act:
    """Change one stored object of the finished output, or all, past the proxy; None deletes it."""

    @contextlib.contextmanager
    def act(world: World, rng: random.Random) -> Iterator[None]:
        client = world.s3.client()
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=world.finished)["Contents"]
        names = sorted(item["Key"] for item in found)
        for name in names if everything else [rng.choice(names)]:
            body = change(client.get_object(Bucket=BUCKET, Key=name)["Body"].read(), rng)
            if body is None:
                client.delete_object(Bucket=BUCKET, Key=name)
            else:
                client.put_object(Bucket=BUCKET, Key=name, Body=body)
        world.proxy.met = 1
        yield

    return act


def _flip(body: bytes, rng: random.Random) -> bytes:
    data = bytearray(body)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _shorten(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body))]


def _delete(body: bytes, rng: random.Random) -> None:
    return None


def _wire(get: str, put: str, listing: str, prefix: str) -> list[FaultKind]:
    """Faults between this process and the server that it talks to; `get`, `put`, `listing`: parts of those paths."""
    write, read = {"method": "PUT", "part": put}, {"method": "GET", "part": get}
    anything = {"method": "", "part": prefix}
    storing: list[tuple[str, Outcome, Act]] = [
        ("refused for a moment", "recovered", _away(0.2, 1.2)),
        ("refused for good", "error", _gone),
        ("reset while sending", "recovered", _proxied(kind="reset_request", times=(1, 3), skip=(0, 2), **write)),
        ("cut while sending", "recovered", _proxied(kind="cut_request", times=(1, 2), skip=(0, 2), **write)),
        ("answer lost", "recovered", _proxied(kind="lost_answer", times=(1, 2), skip=(0, 2), **write)),
        ("500, a few", "recovered", _proxied(kind="status", times=(1, 3), skip=(0, 5), **anything)),
        ("503, a few", "recovered", _proxied(kind="status", status=503, code="SlowDown", times=(1, 2), **write)),
        ("bit flipped while sending", "recovered", _proxied(kind="flip_request", skip=(0, 2), **write)),
        ("bit flipped in all sent", "error", _proxied(kind="flip_request", times=FOREVER, **write)),
        ("bit flipped on reading back", "recovered", _proxied(kind="flip_answer", skip=(0, 2), **read)),
        ("forbidden", "error", _proxied(kind="status", status=403, code="AccessDenied", times=FOREVER, **write)),
    ]
    reusing: list[tuple[str, Outcome, Act]] = [
        ("refused for a moment", "recovered", _away(0.2, 1.2)),
        ("refused for good", "error", _gone),
        ("reset while reading", "recovered", _proxied(kind="reset_answer", times=(1, 3), skip=(0, 2), **read)),
        ("cut while reading", "recovered", _proxied(kind="truncate_answer", times=(1, 3), skip=(0, 2), **read)),
        ("half an object", "recovered", _proxied(kind="shorten_answer", skip=(0, 2), **read)),
        ("slow", "recovered", _proxied(kind="slow_answer", times=3, seconds=(0.2, 1.0), **read)),
        ("stalled", "recovered", _proxied(kind="stall_answer", seconds=(4.0, 5.0), skip=(0, 2), **read)),
        ("500, a few", "recovered", _proxied(kind="status", times=(1, 3), skip=(0, 5), **anything)),
        ("503, a few", "recovered", _proxied(kind="status", status=503, code="SlowDown", times=(1, 2), **read)),
        ("bit flipped while reading", "recovered", _proxied(kind="flip_answer", skip=(0, 2), **read)),
        ("listing cut", "recovered", _proxied(kind="truncate_answer", times=(1, 2), method="GET", part=listing)),
    ]
    kinds = [FaultKind(name, "store", outcome, act) for name, outcome, act in storing]
    kinds += [FaultKind(name, "reuse", outcome, act) for name, outcome, act in reusing]
    harms = {
        "object bit flipped": _at_rest(_flip),
        "object shortened": _at_rest(_shorten),
        "object deleted": _at_rest(_delete),
        "all objects deleted": _at_rest(_delete, everything=True),
    }
    kinds += [FaultKind(name, "reuse", "recomputed", act, None, stored=True) for name, act in harms.items()]
    return kinds


def s3_kinds(world: World) -> list[FaultKind]:
    """All faults of a store that talks to S3 itself."""
    refusals = (
        ("expired key", 400, "ExpiredToken", "The provided token has expired."),
        ("no such bucket", 404, "NoSuchBucket", "The specified bucket does not exist"),
    )
    kinds = _wire(OBJECT, OBJECT, LISTING, "")
    phases: tuple[Phase, ...] = ("store", "reuse")
    for phase in phases:
        for name, status, code, message in refusals:
            kinds.append(
                FaultKind(
                    name=name,
                    phase=phase,
                    outcome="error",
                    act=_proxied(kind="status", status=status, code=code, message=message, times=FOREVER, method=""),
                    connected=None,
                )
            )
        kinds.append(FaultKind("wrong secret", phase, "error", _wrong_secret, None))
        kinds.append(FaultKind("server killed", phase, "recovered", _killed))
        if world.small is not None:
            kinds.append(FaultKind("own disk full", phase, "error", _full_home, None, full=True))
    if world.small is not None:
        kinds.append(FaultKind("server's disk full", "store", "error", _full_server))
    return kinds


def server_kinds(world: World) -> list[FaultKind]:
    """All faults of a store that talks to a tracking server, which passes artifacts on."""
    artifacts, rest = "mlflow-artifacts/artifacts/", "api/2.0/mlflow/"
    kinds = _wire(artifacts, artifacts, "mlflow-artifacts/artifacts?", "api/2.0/mlflow")
    calls = {"method": "", "part": rest}
    for name, fault in (("reset", "reset_request"), ("answer lost", "lost_answer"), ("answer cut", "truncate_answer")):
        act = _proxied(kind=fault, times=1, skip=(0, 8), **calls)
        kinds.append(FaultKind(f"tracking: {name}", "store", "recovered", act))
    act = _proxied(kind="status", status=401, code="UNAUTHENTICATED", times=FOREVER, **calls)
    kinds.append(FaultKind("tracking: refused", "store", "error", act, None))
    return kinds


def mount_small(folder: Path, megabytes: int) -> bool:
    """Mount an empty file system of that size on `folder`; whether that was permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "cudd", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
