"""The composition root: makes every part, connects them, runs until told to stop. The only module that
imports everything.

`python -m cloister.daemon STATE [COMMAND]`, started by the holder, inside the holder's user, mount and pid
namespaces and in the host's network namespace.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from cloister import options as options_file
from cloister import services
from cloister.attachments import Attachments
from cloister.control import Control
from cloister.credentials import Credentials
from cloister.dispatch import Dispatcher
from cloister.dns import Resolvers
from cloister.engine import Engine
from cloister.fabric import Fabric
from cloister.facts import facts_of
from cloister.flowlog import FlowLogs
from cloister.forwarding import Forwarder
from cloister.front import Front
from cloister.gateway_endpoints import GatewayDoors
from cloister.interface_endpoints import InterfaceDoors
from cloister.internet import InternetDoors
from cloister.jobs.containers import Containers
from cloister.jobs.images import Images
from cloister.jobs.supervise import Supervisor
from cloister.kernel.mounts import in_user_namespace
from cloister.kernel.netns import Namespaces
from cloister.kernel.reconcile import Reconciler
from cloister.kernel.shelf import Shelf
from cloister.logs import LogStore
from cloister.options import Options
from cloister.questions import Questions
from cloister.s3 import expiry
from cloister.s3.backend import NAMESPACE, Backend, SeaweedFS
from cloister.s3.certificates import Authority
from cloister.s3.door import Door
from cloister.s3.doors import server
from cloister.s3.mend import mend
from cloister.services.ec2 import default_vpc
from cloister.side.process import NAMESPACE as SIDE_NAMESPACE
from cloister.side.process import SideServices
from cloister.store import Store, UnreadableState
from cloister.vpc.model import PrefixList
from cloister.way_out import WayOut
from cloister.witness import Witness

log = logging.getLogger("cloister")


class CannotStart(Exception):
    """Why, in a sentence for who started it."""


async def run(state: Path, options: Options, command: str) -> None:
    """Serve until SIGTERM or SIGINT. `command` begins a command line about this state folder."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        url = await compose(state, options, command, stack)
        # What is there now stays: no collection need look through it again, or come for every small thing.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        log.info("ready at %s", url)
        await stop.wait()
        log.info("stopping")


async def compose(state: Path, options: Options, command: str, stack: AsyncExitStack) -> str:
    """Make and start every part; what is to be stopped is pushed on `stack`. The URL to reach it."""
    log.info("starting: resources")
    try:
        place = _bind(options.address, options.port, stack)
        plain = _bind(options.address, options.http_port, stack) if options.http_port else None
    except CannotStart as error:
        raise CannotStart(f"{error}. Choose another: {command} up --port PORT (--http-port PORT).") from error
    services.load()
    store = Store(state / "world.sqlite")
    stack.callback(store.close)
    engine = Engine(store)
    seed(state, engine, options)
    with engine.transaction() as tx:
        default_vpc.add_prefix_lists(tx, options.region)
    credentials = Credentials(state, options.account)
    authority = Authority(state)
    logs = LogStore(state / "logs.sqlite")
    stack.callback(logs.close)
    retention = asyncio.create_task(_expire(logs, engine.clock), name="log retention")
    stack.callback(retention.cancel)
    log.info("starting: the network")
    namespaces = stack.enter_context(Namespaces(state / "run" / "netns"))
    reconciler = Reconciler(namespaces, foreign=(NAMESPACE, SIDE_NAMESPACE))
    fabric = Fabric(engine, namespaces, reconciler)

    async def steer(vpc_id: str, commands: str) -> None:
        await fabric.in_turn(partial(reconciler.steer, vpc_id, commands))

    witness = Witness(state / "witness.sqlite", engine, namespaces, steer, Shelf.of_the_holder())
    await witness.start()
    stack.push_async_callback(witness.stop)
    await fabric.start()
    stack.push_async_callback(fabric.stop)
    backend = make_backend(state, options, namespaces)
    log.info("starting: the object store")
    await backend.start()
    stack.push_async_callback(backend.stop)
    await mend(engine.world, backend)
    lifecycles = asyncio.create_task(expiry.run(engine, backend, engine.clock), name="lifecycles")
    stack.callback(lifecycles.cancel)
    log.info("starting: what follows resources")
    flow_logs = FlowLogs(
        state / "flows.sqlite",
        engine,
        fabric,
        reconciler,
        namespaces,
        logs,
        backend,
        account=options.account,
        region=options.region,
    )
    await flow_logs.start()
    stack.push_async_callback(flow_logs.stop)
    door = Door(
        engine,
        credentials,
        backend,
        region=options.region,
        account=options.account,
        observe=witness.decided,
    )
    way_out = WayOut(engine, fabric, namespaces, state / "slirp4netns.log", enabled=options.internet)
    await way_out.start()
    stack.push_async_callback(way_out.stop)
    resolvers = Resolvers(
        engine,
        fabric,
        namespaces,
        region=options.region,
        elsewhere=way_out.name_of_internet,
        forward=Forwarder(engine, namespaces, region=options.region).forward,
        told=witness.told,
    )
    await resolvers.start()
    stack.push_async_callback(resolvers.stop)
    images = Images(state / "images", rootless=in_user_namespace())
    supervisor = Supervisor(
        state=state,
        engine=engine,
        fabric=fabric,
        containers=Containers(state),
        images=images,
        credentials=credentials,
        logs=logs,
        namespaces=namespaces,
        options=options,
        witness=witness,
        command=command,
    )
    side = SideServices(state, namespaces, account=options.account, region=options.region)
    stack.push_async_callback(side.stop)
    dispatcher = Dispatcher(
        engine,
        credentials,
        account=options.account,
        region=options.region,
        deps={
            "logs": logs,
            "credentials": credentials,
            "applied": lambda: fabric.applied_world,
            "limits": {"rules_per_security_group": options.rules_per_security_group},
        },
        side=side,
        observe=witness.decided,
    )
    front = Front(dispatcher, door, cors_origins=options.cors_origins)
    gateway_doors = GatewayDoors(engine, fabric, namespaces, front, door, authority)
    await gateway_doors.start()
    stack.push_async_callback(gateway_doors.stop)
    interface_doors = InterfaceDoors(engine, fabric, namespaces, front, door, authority)
    await interface_doors.start()
    stack.push_async_callback(interface_doors.stop)
    internet_doors = InternetDoors(engine, fabric, namespaces, front, door, authority)
    await internet_doors.start()
    stack.push_async_callback(internet_doors.stop)
    runner = web.ServerRunner(server(front.handle))
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, place, ssl_context=authority.server_context()).start()
    if plain is not None:
        await web.SockSite(runner, plain).start()
    log.info("starting: jobs")
    await supervisor.start()
    stack.push_async_callback(supervisor.stop)
    running = {
        "pid": os.getpid(),
        "url": f"https://{options.address}:{options.port}",
        "http_url": f"http://{options.address}:{options.http_port}" if options.http_port else None,
        "region": options.region,
        "account": options.account,
    }
    questions = Questions(
        state,
        engine,
        credentials,
        witness,
        look=lambda request: facts_of(request, backend, images),
        command=command,
        region=options.region,
        account=options.account,
    )
    attachments = Attachments(engine, fabric, namespaces, region=options.region)
    await attachments.start()
    stack.push_async_callback(attachments.stop)
    control = Control(
        running, engine, fabric, supervisor, logs, backend, questions, attachments, way_out, state, command
    )
    await _serve_control(state, control, stack)
    _write_running(state, running)
    return str(running["url"])


def seed(state: Path, engine: Engine, options: Options) -> None:
    """Make what a new account finds, once: who deletes the default VPC has deleted it, also when the first
    start was cut off between the two lines that make it and say so."""
    if (state / "seeded").exists():
        return
    if engine.world.count(PrefixList) == 0:
        with engine.transaction() as tx:
            default_vpc.seed(tx, region=options.region, account=options.account)
    (state / "seeded").touch()


def make_backend(state: Path, options: Options, namespaces: Namespaces) -> Backend:
    """The S3 endpoint that was named, else a SeaweedFS of our own."""
    if options.s3_backend is None:
        return SeaweedFS(state, namespaces)
    return Backend(
        options.s3_backend, options.s3_backend_access_key or "", options.s3_backend_secret_key or ""
    )


def _bind(address: str, port: int, stack: AsyncExitStack) -> socket.socket:
    """A port that nobody can connect to yet: that it is taken is known before anything else is started."""
    place = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    stack.callback(place.close)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((address, port))
    except OSError as error:
        raise CannotStart(f"port {port} of {address} cannot be had: {error.strerror}") from error
    return place


async def _expire(logs: LogStore, clock: Callable[[], float]) -> None:
    """Every hour, what is older than its log group keeps."""
    while True:
        try:
            logs.expire(int(clock() * 1000))
        except sqlite3.Error:  # a full disk, say: the next hour does it
            log.exception("what log groups do not keep any more could not be removed")
        await asyncio.sleep(3600)


async def _serve_control(state: Path, control: Control, stack: AsyncExitStack) -> None:
    path = state / "control.sock"
    path.unlink(missing_ok=True)
    # Bound by way of the folder's descriptor: a socket's path is limited to 107 bytes.
    folder = os.open(state, os.O_PATH)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    path.chmod(0o600)
    # who holds an interface (`cloister attach`) holds its connection open and would be waited for
    runner = web.AppRunner(control.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener).start()


def _write_running(state: Path, running: dict[str, Any]) -> None:
    scratch = state / "daemon.json.new"
    scratch.write_text(json.dumps(running))
    os.replace(scratch, state / "daemon.json")


def take_all_files() -> None:
    """Open as many files as we may, whatever a shell's soft limit (mostly 1,024): every connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    take_all_files()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # The fabric's worker compiles beside the loop: a request must not wait 5 ms until it yields.
    sys.setswitchinterval(0.0002)
    state, command = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cloister"
    try:
        asyncio.run(run(state, options_file.read(state), command))
    except (CannotStart, UnreadableState) as error:
        log.error("cannot start: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
