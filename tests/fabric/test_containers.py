"""Real containers, in a throw-away private world: `holder --exec` runs this file again with a test's name."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE

from cloister.jobs import bundle, containers, rootfs
from cloister.jobs.bundle import Limits
from cloister.jobs.containers import ContainerError, Containers, ContainerSpec, Exit, Mount
from cloister.jobs.hostimage import HostBind
from cloister.jobs.images import Image, ImageNotFound, Images
from cloister.jobs.logfile import LogLine, LogPosition
from cloister.jobs.processes import Process
from cloister.kernel import cgroups, mounts, syscalls
from cloister.kernel.cgroups import parent_name
from cloister.kernel.mounts import in_user_namespace
from cloister.kernel.netns import Namespaces

pytestmark = pytest.mark.fabric


class Lab:
    """A state folder, one network namespace, and ways to run a container to its end."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self.namespaces = Namespaces(self.state / "run" / "netns")
        self.namespaces.create("net")
        self.containers = Containers(self.state)
        self.rootless = in_user_namespace()
        self.environ: dict[str, str] = {}
        self.images = Images(self.state / "images", rootless=self.rootless)
        self._count = 0

    def use_driver(self, driver: str) -> Images:
        """A podman storage of our own, empty, with this driver."""
        folder = self.state.parent / f"podman-{driver}"
        folder.mkdir()
        places = f'graphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        (folder / "storage.conf").write_text(f'[storage]\ndriver = "{driver}"\n{places}')
        self.environ = {**os.environ, "STORAGE_DRIVER": driver}
        if self.rootless:
            uid = Path("/proc/self/uid_map").read_text().split()[1]
            self.environ |= {
                "XDG_DATA_HOME": f"{folder}/data", "XDG_CONFIG_HOME": f"{folder}/config",
                "_CONTAINERS_USERNS_CONFIGURED": "done", "_CONTAINERS_ROOTLESS_UID": uid,
            }  # fmt: skip
        else:
            self.environ["CONTAINERS_STORAGE_CONF"] = f"{folder}/storage.conf"
        return Images(self.state / "images", rootless=self.rootless, environ=self.environ)

    def import_busybox(
        self, *changes: str, name: str = "busybox", files: dict[str, str] | None = None
    ) -> None:
        tree = self.state.parent / f"tree-{name}"
        for sub in ("bin", "etc", "opt/work"):
            (tree / sub).mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", tree / "bin/busybox")
        for applet in (
            "sh",
            "id",
            "cat",
            "ls",
            "sleep",
            "echo",
            "mount",
            "pwd",
            "touch",
            "stat",
            "true",
            "ps",
        ):
            (tree / "bin" / applet).symlink_to("busybox")
        for path, text in (files or {}).items():
            (tree / path).write_text(text)
        tar = f"{tree}.tar"
        subprocess.run(["tar", "-C", str(tree), "--owner=0", "--group=0", "-cf", tar, "."], check=True)
        options = [word for change in changes for word in ("-c", change)]
        subprocess.run(
            ["podman", "import", "-q", *options, tar, f"{name}:latest"],
            check=True, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=60 * PATIENCE,
        )  # fmt: skip

    async def host(self) -> Image:
        return await self.images.resolve("cloister/host")

    def spec(self, image: Image, *entrypoint: str, **more: Any) -> ContainerSpec:
        self._count += 1
        name = more.pop("id", f"job-algo-{self._count}")
        folder = self.state / "jobs" / name
        values: dict[str, Any] = {
            "id": name, "folder": folder, "image": image, "netns": str(self.namespaces.path("net")),
            "hostname": "algo-1", "log_path": folder / "log", "entrypoint": entrypoint,
        }  # fmt: skip
        return ContainerSpec(**{**values, **more})

    async def run(self, image: Image, *entrypoint: str, **more: Any) -> tuple[Exit, str]:
        spec = self.spec(image, *entrypoint, **more)
        await self.containers.start(spec)
        ended = await asyncio.wait_for(self.containers.wait(spec.id), 60 * PATIENCE)
        text = "\n".join(line.text for line in await self.lines(spec.id))
        await self.containers.remove(spec.id)
        return ended, text

    async def lines(self, container: str, position: LogPosition | None = None) -> list[LogLine]:
        found: list[LogLine] = []
        async for lines, _ in self.containers.follow_log(container, position):
            found += lines
        return found

    async def until_it_says(self, container: str, text: str) -> None:
        async with asyncio.timeout(30 * PATIENCE):
            async for lines, _ in self.containers.follow_log(container):
                if any(text in line.text for line in lines):
                    return
        raise AssertionError(f"{container} never said {text!r}")


def in_world(test: Callable[[Lab], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def outside() -> None:
        command = [sys.executable, "-m", "cloister.kernel.holder", "--exec", sys.executable, __file__]
        done = subprocess.run(
            [*command, test.__name__], capture_output=True, text=True, timeout=110 * PATIENCE,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    outside.scenario = test  # type: ignore[attr-defined]
    del outside.__wrapped__  # pytest would ask for a fixture named `lab`
    return outside


def _processes() -> set[str]:
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.add(Path(f"/proc/{entry}/comm").read_text().strip())
        except OSError:
            continue
    return found


@in_world
async def test_cloister_host_runs_python_with_boto3_and_tells_the_exit_code(lab: Lab) -> None:
    ended, text = await lab.run(
        await lab.host(), "python3", "-c", "import boto3, sys; print(boto3.__name__); sys.exit(7)"
    )
    assert (ended.code, ended.signal, ended.lost, text) == (7, None, False, "boto3")
    assert ended.started <= ended.ended <= time.time()


@in_world
async def test_an_environment_on_a_file_system_that_shows_no_other_ids_is_used_as_it_is(lab: Lab) -> None:
    folders = {name: lab.state / "env" / name for name in ("lower", "upper", "work", "merged")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["lower"] / "module.py").write_text("here = 5")
    mounts.overlay(folders["merged"], [folders["lower"]], folders["upper"], folders["work"])
    image = await lab.host()
    place = str(folders["merged"])
    image = replace(image, binds=(*image.binds, HostBind(path=place, ours=True)))
    ended, text = await lab.run(
        image, "python3", "-c", "import module; print(module.here)", env={"PYTHONPATH": place}
    )
    assert (ended.code, text) == (0, "5")


@in_world
async def test_an_image_of_podman_runs_as_its_own_configuration_says(lab: Lab) -> None:
    for driver in ("vfs", "overlay"):
        lab.images = lab.use_driver(driver)
        lab.import_busybox(
            "USER app", "WORKDIR /opt/work", "ENV COLOR=blue",
            'ENTRYPOINT ["/bin/sh", "-c"]', 'CMD ["exit 9"]',
            name=f"mine-{driver}",
            files={"etc/passwd": "app:x:1234:1235::/opt:/bin/sh\n", "etc/group": "more:x:77:app\n"},
        )  # fmt: skip
        uri = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/mine-{driver}:latest"
        image = await lab.images.resolve(uri)
        ended, _ = await lab.run(image)
        assert ended.code == 9
        said = "id -u; id -g; id -G; pwd; echo $COLOR $SHAPE $HOME $HOSTNAME"
        ended, text = await lab.run(image, arguments=(said,), env={"SHAPE": "round"})
        assert text.splitlines() == ["1234", "1235", "1235 77", "/opt/work", "blue round /opt algo-1"]
        ended, text = await lab.run(image, "/bin/echo", "no", "entrypoint")
        assert text == "no entrypoint"


@in_world
async def test_an_image_that_is_nowhere_is_the_known_failure(lab: Lab) -> None:
    with pytest.raises(ImageNotFound) as caught:
        await lab.images.resolve("localhost:9/none:1")
    known = "ClientError: API error (404): manifest for localhost:9/none:1 not found: manifest unknown: "
    assert str(caught.value).startswith(known + "Requested image not found")
    assert "connection refused" in str(caught.value)


@in_world
async def test_a_command_that_is_not_there_is_a_sentence_and_leaves_nothing(lab: Lab) -> None:
    for command, code in (("/nowhere/tool", 127), ("tool-of-nowhere", 127), ("/etc/passwd", 126)):
        spec = lab.spec(await lab.host(), command)
        with pytest.raises(ContainerError) as caught:
            await lab.containers.start(spec)
        assert caught.value.exit_code == code, str(caught.value)
        assert command in str(caught.value)
        assert lab.containers.adopt() == ()
        assert not (spec.folder / "container").exists()
    for _ in range(50):  # conmon tells the outcome, and then ends
        if not {"conmon", "runc"} & _processes():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(_processes())


@in_world
async def test_signals_reach_the_first_process(lab: Lab) -> None:
    script = "trap 'echo stopping; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    spec = lab.spec(await lab.host(), "/bin/sh", "-c", script)
    await lab.containers.start(spec)
    await lab.until_it_says(spec.id, "ready")
    await lab.containers.kill(spec.id, signal.SIGINT)
    assert (await lab.containers.wait(spec.id)).code == 5
    # PID 1 without a handler: INT does nothing. (Before it says so it may be runc, which has one.)
    deaf = lab.spec(await lab.host(), "/bin/sh", "-c", "echo ready; exec sleep 60")
    await lab.containers.start(deaf)
    await lab.until_it_says(deaf.id, "ready")
    await lab.containers.kill(deaf.id, signal.SIGINT)
    await asyncio.sleep(0.2)
    await lab.containers.kill(deaf.id, signal.SIGKILL)
    ended = await lab.containers.wait(deaf.id)
    assert (ended.code, ended.signal, ended.lost) == (137, signal.SIGKILL, False)
    await lab.containers.kill(deaf.id, signal.SIGKILL)  # it has ended: nothing happens


@in_world
async def test_lines_of_both_streams_come_whole_and_in_order(lab: Lab) -> None:
    script = (
        "import os,sys; os.write(1, b'a' * 30000 + b'\\n'); os.write(2, b'\\xff bad\\n');"
        "os.write(1, b'no end')"
    )
    spec = lab.spec(await lab.host(), "python3", "-c", script)
    await lab.containers.start(spec)
    await lab.containers.wait(spec.id)
    lines = await lab.lines(spec.id)
    assert [line.text for line in lines if line.stream == "stdout"] == ["a" * 30000, "no end"]
    assert [line.text for line in lines if line.stream == "stderr"] == ["\ufffd bad"]
    assert all(abs(line.time / 1e9 - time.time()) < 60 for line in lines)


@in_world
async def test_output_without_end_fills_neither_the_disk_nor_the_log(lab: Lab) -> None:
    containers.MAX_LOG = 4 << 20
    spec = lab.spec(await lab.host(), "/bin/sh", "-c", "yes 0123456789012345678901234567 | head -c 40000000")
    await lab.containers.start(spec)
    lines = await lab.lines(spec.id)
    assert lines[-1].text == "[Cloister keeps the first 4 MiB of a container's log: the rest is not kept]"
    assert sum(len(line.text) for line in lines) < 5 << 20
    on_disk = spec.log_path.stat()
    assert on_disk.st_size > 40_000_000
    assert on_disk.st_blocks * 512 < 8 << 20
    assert (await lab.containers.wait(spec.id)).code == 0
    await lab.containers.remove(spec.id)


@in_world
async def test_a_container_survives_its_daemon_and_the_next_one_goes_on(lab: Lab) -> None:
    spec = lab.spec(await lab.host(), "/bin/sh", "-c", "echo one; sleep 0.7; echo two; exit 4")
    await lab.containers.start(spec)
    batches = lab.containers.follow_log(spec.id)
    lines, position = await anext(batches)
    assert [line.text for line in lines] == ["one"]
    await batches.aclose()
    lab.containers = Containers(lab.state)
    assert lab.containers.adopt() == (spec.id,)
    await lab.containers.start(spec)  # it runs: nothing happens
    assert [line.text for line in await lab.lines(spec.id, position)] == ["two"]
    assert (await lab.containers.wait(spec.id)).code == 4
    await lab.containers.start(spec)  # it ran: nothing happens
    assert (await Containers(lab.state).wait(spec.id)).code == 4
    await lab.containers.remove(spec.id)
    await lab.containers.remove(spec.id)
    assert lab.containers.adopt() == ()


@in_world
async def test_a_daemon_killed_while_it_starts_a_container_leaves_a_start_that_can_be_done_again(
    lab: Lab,
) -> None:
    # The daemon: this file, which starts container `victim` and says nothing.
    for milliseconds in range(150, 450, 25):
        daemon = subprocess.Popen([sys.executable, __file__, "start_one", str(lab.state)])
        time.sleep(milliseconds / 1000)
        daemon.kill()
        daemon.wait()
        lab.containers = Containers(lab.state)
        spec = _victim(lab.state, await lab.host())
        await lab.containers.start(spec)
        assert (await asyncio.wait_for(lab.containers.wait(spec.id), 10)).code == 6
        assert [line.text for line in await lab.lines(spec.id)][-1] == "ran"
        await lab.containers.remove(spec.id)
        spec.log_path.unlink()
        assert not {"conmon", "runc"} & _processes()


def _victim(state: Path, image: Image) -> ContainerSpec:
    folder = state / "jobs" / "victim"
    return ContainerSpec(
        id="victim", folder=folder, image=image, netns=str(state / "run/netns/net"), hostname="algo-1",
        log_path=folder / "log", entrypoint=("/bin/sh", "-c", "echo ran; exit 6"),
    )  # fmt: skip


async def start_one(state: Path) -> None:
    image = await Images(state / "images", rootless=in_user_namespace()).resolve("cloister/host")
    await Containers(state).start(_victim(state, image))
    await asyncio.sleep(60)


@in_world
async def test_a_container_whose_monitor_was_killed_is_lost_and_ended(lab: Lab) -> None:
    spec = lab.spec(await lab.host(), "/bin/sleep", "60")
    await lab.containers.start(spec)
    monitor = int((spec.folder / "container" / "monitor.pid").read_text())
    os.kill(monitor, signal.SIGKILL)
    ended = await asyncio.wait_for(lab.containers.wait(spec.id), 5)
    assert ended.lost
    await asyncio.sleep(0.2)
    assert "sleep" not in _processes()
    await lab.containers.remove(spec.id)


@in_world
async def test_removing_leaves_nothing(lab: Lab) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    specs = [lab.spec(await lab.host(), "/bin/sleep", "60") for _ in range(4)]
    await asyncio.gather(*(lab.containers.start(spec) for spec in specs))
    assert Path("/proc/self/mountinfo").read_text() == before  # a container's mounts are its own
    await asyncio.gather(*(lab.containers.remove(spec.id) for spec in specs))
    assert not {"conmon", "runc", "sleep"} & _processes()
    assert list(Path("/sys/fs/cgroup").rglob(parent_name(lab.state))) == []
    assert list((lab.state / "run" / "runtime").iterdir()) == []
    assert list((lab.state / "run" / "containers").iterdir()) == []
    assert not any((spec.folder / "container").exists() for spec in specs)
    lab.namespaces.delete("net")


@in_world
async def test_a_container_that_nests_its_folders_by_thousands_is_removed_like_another(lab: Lab) -> None:
    script = "import os\nos.chdir('/tmp')\nfor _ in range(3000):\n os.mkdir('d')\n os.chdir('d')"
    spec = lab.spec(await lab.host(), "python3", "-c", script)
    await lab.containers.start(spec)
    assert (await lab.containers.wait(spec.id)).code == 0
    await lab.containers.remove(spec.id)
    assert not (spec.folder / "container").exists()
    assert lab.containers.adopt() == ()


@in_world
async def test_a_container_that_makes_its_monitor_believe_it_ended_has_ended(lab: Lab) -> None:
    # Who asks to be traced is traced by its parent, the monitor, which takes the first stop for the end.
    script = (
        "import ctypes, os, signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "ctypes.CDLL(None).ptrace(0, 0, 0, 0)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "time.sleep(60)"
    )
    spec = lab.spec(await lab.host(), "python3", "-c", script)
    await lab.containers.start(spec)
    process = Process(**json.loads((lab.state / f"run/containers/{spec.id}.json").read_text())["process"])
    await asyncio.wait_for(lab.containers.wait(spec.id), 30)
    assert not process.alive
    await lab.containers.remove(spec.id)


@in_world
async def test_data_is_seen_and_written_as_root_and_read_only_is_read_only(lab: Lab) -> None:
    data = lab.state / "data"
    (data / "in").mkdir(parents=True)
    (data / "out").mkdir()
    (data / "in" / "x").write_text("input")
    (data / "in" / "x").chmod(0o600)
    script = (
        "stat -c %u:%g /opt/ml/processing/in/x; cat /opt/ml/processing/in/x; echo; "
        "touch /opt/ml/processing/in/y || echo refused; echo done > /opt/ml/processing/out/z; "
        "chmod 600 /opt/ml/processing/out/z; cat /etc/hosts /etc/resolv.conf; hostname"
    )
    ended, text = await lab.run(
        await lab.host(), "/bin/sh", "-c", script,
        mounts=(
            Mount(source=str(data / "in"), target="/opt/ml/processing/in", read_only=True),
            Mount(source=str(data / "out"), target="/opt/ml/processing/out"),
        ),
        hosts={"algo-1": "10.0.0.4", "algo-2": "10.0.0.5"}, resolv_conf="nameserver 10.0.0.2\n",
    )  # fmt: skip
    assert ended.code == 0
    assert (data / "out" / "z").read_text() == "done\n"
    assert (data / "out" / "z").stat().st_uid == 0
    for said in ("0:0\ninput", "refused", "10.0.0.5 algo-2", "nameserver 10.0.0.2", "\nalgo-1"):
        assert said in text, text


@in_world
async def test_memory_and_processes_are_limited_where_the_host_can(lab: Lab) -> None:
    if lab.rootless:
        return
    limits = Limits(memory=64 << 20, pids=20, cpus=1.0)
    ended, _ = await lab.run(await lab.host(), "python3", "-c", "x = bytearray(200 << 20)", limits=limits)
    assert (ended.oom_killed, ended.signal) == (True, signal.SIGKILL)
    assert not Path("oom").exists()  # conmon leaves it where it runs: the container's own folder
    script = (
        "import os, time\ntry:\n    for n in range(50): os.fork() or time.sleep(2)\n"
        "except OSError: print('full', flush=True)"
    )
    ended, text = await lab.run(await lab.host(), "python3", "-c", script, limits=limits)
    assert "full" in text


_TRY = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, work):
    try: result = work()
    except Exception as error: print(name, 'refused', type(error).__name__, error)
    else: print(name, 'DONE', result)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno(); raise OSError(number, os.strerror(number))
def write(path, text):
    with open(path, 'w') as file: file.write(text)
attempt('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
attempt('vsock', lambda: socket.socket(40, socket.SOCK_STREAM))
attempt('alg', lambda: socket.socket(38, socket.SOCK_SEQPACKET))
attempt('transparent', lambda: socket.socket().setsockopt(socket.SOL_IP, 19, 1))
attempt('mark', lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
def link_up():
    route = socket.socket(16, socket.SOCK_RAW, 0)
    import struct
    route.send(struct.pack('=IHHII', 32, 16, 5, 1, 0) + struct.pack('=BBHiII', 0, 0, 0, 1, 0, 1))
    error = struct.unpack('=i', route.recv(4096)[16:20])[0]
    if error: raise OSError(-error, os.strerror(-error))
attempt('link down', link_up)
attempt('mount', lambda: call('mount', b'none', b'/tmp', b'tmpfs', 0, None))
attempt('remount sys', lambda: call('mount', b'none', b'/proc/sys', None, 4096 | 32, None))
attempt('user namespace', lambda: call('unshare', 0x10000000))
attempt('net namespace', lambda: call('unshare', 0x40000000))
attempt('proc sys', lambda: write('/proc/sys/net/ipv4/ip_forward', '1'))
attempt('proc sys kernel', lambda: write('/proc/sys/kernel/core_pattern', 'x'))
attempt('sysrq', lambda: write('/proc/sysrq-trigger', 'h'))
attempt('sys', lambda: write('/sys/class/net/lo/mtu', '1400'))
pids = '/sys/fs/cgroup/pids'
attempt('cgroup', lambda: os.mkdir((pids if os.path.isdir(pids) else os.path.dirname(pids)) + '/x'))
attempt('disk', lambda: (os.mknod('/tmp/d', 0o60600, os.makedev(254, 0)), open('/tmp/d', 'rb')))
attempt('kernel log', lambda: call('klogctl', 3, ctypes.create_string_buffer(10), 10))
attempt('time', lambda: __import__('time').clock_settime(0, 0))
attempt('usr', lambda: write('/usr/bin/evil', 'x'))
attempt('python', lambda: write(sys.prefix + '/evil', 'x'))
attempt('shadow', lambda: open('/etc/shadow').read())
attempt('more files', lambda: __import__('resource').setrlimit(7, (1 << 20 << 5, 1 << 20 << 5)))
# where Cloister lies in a home, the folders that lead to its Python are there, and nothing else in them
ours = {sys.prefix, sys.base_prefix}
def beside(folder):
    found = []
    for path in [f'{folder}/{name}' for name in os.listdir(folder)]:
        leads = any(f'{one}/'.startswith(f'{path}/') for one in ours)
        found += [] if path in ours else beside(path) if leads else [path]
    return found
attempt('home', lambda: beside('/home')[0])
attempt('root', lambda: beside('/root')[0])
attempt('state', lambda: os.listdir(STATE))
print('processes', sorted(entry for entry in os.listdir('/proc') if entry.isdigit()))
print('uid', open('/proc/self/uid_map').read().split())
print('privileges', [line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])
print('filter', [line.split()[1] for line in open('/proc/self/status') if line.startswith('Seccomp:')])
"""


@in_world
async def test_a_root_process_in_the_container_has_no_power_outside_of_it(lab: Lab) -> None:
    script = _TRY.replace("STATE", repr(str(lab.state)))
    more = (*bundle.CAPABILITIES, "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_MKNOD")
    for capabilities in (bundle.CAPABILITIES, more):
        ended, text = await lab.run(await lab.host(), "python3", "-c", script, capabilities=capabilities)
        assert ended.code == 0, text
        if not text.count("refused") == 26:
            raise AssertionError(text)
        assert "DONE" not in text, text
        assert "processes ['1']" in text
        assert "privileges ['1']" in text
        assert "filter ['2']" in text
        if not lab.rootless:
            uid = int(text.partition("uid [")[2].split(",")[1].strip(" '"))
            assert uid >= 65536  # its root is nobody on the host


_LEASE = """
import botocore, ctypes, fcntl, os, platform
fd = os.open(botocore.__file__, os.O_RDONLY)
libc = ctypes.CDLL(None)
number = {'x86_64': 72, 'aarch64': 25}[platform.machine()]
for command in (1024, 1024 + (1 << 32), 1040, 1040 + (1 << 32)):
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        print('lease', libc.syscall(number, fd, ctypes.c_long(command), kind))
print('else', fcntl.fcntl(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10), fcntl.F_GETFD), fcntl.flock(fd, 1))
"""


@in_world
async def test_a_container_cannot_lease_a_file_that_it_shares_and_have_others_wait(lab: Lab) -> None:
    _, text = await lab.run(await lab.host(), "python3", "-c", _LEASE)
    assert text.splitlines() == ["lease -1"] * 8 + ["else 1 None"], text


_DEVICES = """
import os
for name in ('full', 'null', 'random', 'tty', 'urandom', 'zero'):
    mode = os.stat(f'/dev/{name}').st_mode & 0o777
    for change in (os.utime, lambda path: os.chmod(path, mode), lambda path: os.chown(path, 0, 0)):
        try: change(f'/dev/{name}')
        except OSError: pass
        else: print('changed', name)
open('/dev/null', 'w').write('x')
print(len(open('/dev/urandom', 'rb').read(3)))
"""


@in_world
async def test_the_hosts_devices_keep_their_modes_also_where_a_containers_root_is_the_hosts(lab: Lab) -> None:
    # As for root where the state's file system has no idmapped mounts.
    maps = [rootfs._identity(f"/proc/self/{kind}_map") for kind in ("uid", "gid")]
    lab.containers._ids = rootfs.Ids(uid_map=maps[0], gid_map=maps[1])
    ended, text = await lab.run(await lab.host(), "python3", "-c", _DEVICES)
    assert (ended.code, text) == (0, "3")


@in_world
async def test_an_image_cannot_have_the_hosts_files_read(lab: Lab) -> None:
    lab.images = lab.use_driver("overlay")
    lab.import_busybox("USER daemon", name="links")
    image = await lab.images.resolve("links")
    passwd = Path(image.layers[0]) / "etc" / "passwd"
    passwd.unlink(missing_ok=True)
    passwd.symlink_to("../../../../../../etc/passwd")
    with pytest.raises(ContainerError) as caught:
        await lab.run(image, "/bin/true")
    assert "user daemon is not in its /etc/passwd" in str(caught.value)


async def _run(test: Callable[[Lab], Awaitable[None]], lab: Lab) -> None:
    try:
        await test(lab)
    finally:
        for container in lab.containers.adopt():
            await lab.containers.remove(container)
        cgroups.remove_all(lab.state)


def main() -> None:
    """Inside the world: run one test. What it started ends with the world, what it mounted is unmounted."""
    if sys.argv[1] == "start_one":
        asyncio.run(start_one(Path(sys.argv[2])))
        return
    where = Path(tempfile.mkdtemp())
    try:
        asyncio.run(_run(globals()[sys.argv[1]].scenario, Lab(where)))
    finally:
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{where}/"):
                syscalls.umount(line.split()[4], syscalls.MNT_DETACH)
        shutil.rmtree(where)


if __name__ == "__main__":
    main()


def test_what_a_crash_left_of_the_cgroups_is_removed(tmp_path: Path) -> None:
    parent = cgroups.default_parent(tmp_path)
    if not parent:
        pytest.skip("no cgroups that can be written")
    folders = cgroups._folders(parent)
    for folder in folders:
        (folder / "job-algo-1" / "inner").mkdir(parents=True)
    assert cgroups.remove_all(tmp_path) == []
    assert not any(folder.exists() for folder in folders)
