"""Real proxies in subprocesses: nginx, HAProxy and Caddy, with configurations that are those of examples/deployment.

Where a program is not installed the test is skipped, but in CI it fails: see ``need_program`` of conftest.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import wait_until

RECIPES = Path(__file__).parent.parent / "examples" / "deployment"
#: What stands around the recipe of nginx, which is for one site.
_NGINX = """
daemon off;
{user}
pid {directory}/nginx.pid;
error_log stderr warn;
{main}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site.conf;
}}
"""
_AUTHORITY = """
[ca]
default_ca = own
[own]
new_certs_dir = .
database = index
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = more
[any]
commonName = supplied
[more]
subjectAltName = {names}
basicConstraints = critical, CA:true
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
"""
NeedProgram = Callable[[str], str]


class Proxy:
    """A running proxy.

    Attributes:
        process: its main process.
        config: the file that it reads, again when it is reloaded.
        ports: where it listens on 127.0.0.1.
    """

    def __init__(self, command: list[str], directory: Path, config: Path, ports: list[int]) -> None:
        self.config = config
        self.ports = ports
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(directory)}, start_new_session=True)
        try:
            wait_until(lambda: all(map(is_open, ports)) or self.process.poll() is not None)
            assert self.process.poll() is None, self.log()
        except BaseException:
            self.stop()
            raise

    @property
    def port(self) -> int:
        """The first of its ports."""
        return self.ports[0]

    def log(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to its main process."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it and what it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)


def is_open(port: int) -> bool:
    """Tell whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port that is free; somebody else may take it, so use it soon."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def recipe(name: str, changes: dict[str, str]) -> str:
    """Return a recipe with some of its text changed, such as ports and paths; each has to be there."""
    text = (RECIPES / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def nginx_site(upstream: int | str, port: int, changes: dict[str, str] | None = None) -> str:
    """Return the recipe of nginx without TLS and the redirect to it.

    Args:
        upstream: where gunicorn listens: a port of 127.0.0.1, or another address.
        port: where nginx is to listen.
        changes: what is to be changed besides.
    """
    text = recipe("nginx.conf", {
        **_nginx_changes(upstream, free_port()), "listen 443 ssl http2;": f"listen 127.0.0.1:{port};",
        "ssl_certificate ": "# ", "ssl_certificate_key": "#"})
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    return text


def nginx_tls_site(upstream: int | str, plain: int, secure: int, certificate: Path) -> str:
    """Return the recipe of nginx with other ports and another certificate."""
    return recipe("nginx.conf", {
        **_nginx_changes(upstream, plain), "listen 443 ssl http2;": f"listen 127.0.0.1:{secure} ssl http2;",
        "/etc/ssl/chat/fullchain.pem": str(certificate), "/etc/ssl/chat/key.pem": str(certificate)})


def _nginx_changes(upstream: int | str, plain: int) -> dict[str, str]:
    address = f"127.0.0.1:{upstream}" if isinstance(upstream, int) else upstream
    return {
        "server 127.0.0.1:8000;": f"server {address};", "listen 80;": f"listen 127.0.0.1:{plain};",
        "Host $host;": "Host $host:$server_port;"}


@contextmanager
def run_nginx(program: str, directory: Path, site: str, ports: list[int], main: str = "") -> Iterator[Proxy]:
    """Run nginx for the time of a with block.

    Args:
        program: where it is.
        directory: empty; for its files.
        site: what the file of a site has.
        ports: where that listens.
        main: more directives of the main configuration.
    """
    (directory / "site.conf").write_text(site)
    config = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(_NGINX.format(directory=directory, main=main, user=user))
    command = [program, "-p", str(directory), "-c", str(config), "-e", "stderr"]
    with _running(command, directory, config, ports) as proxy:
        yield proxy


@contextmanager
def run_haproxy(program: str, directory: Path, text: str, ports: list[int]) -> Iterator[Proxy]:
    """Run HAProxy for the time of a with block, with a configuration that listens on these ports."""
    config = directory / "haproxy.cfg"
    config.write_text(text)
    with _running([program, "-W", "-f", str(config)], directory, config, ports) as proxy:
        yield proxy


@contextmanager
def run_caddy(program: str, directory: Path, text: str, ports: list[int]) -> Iterator[Proxy]:
    """Run Caddy for the time of a with block, with a configuration that listens on these ports."""
    config = directory / "Caddyfile"
    config.write_text(text)
    command = [program, "run", "--config", str(config), "--adapter", "caddyfile"]
    with _running(command, directory, config, ports) as proxy:
        yield proxy


@contextmanager
def _running(command: list[str], directory: Path, config: Path, ports: list[int]) -> Iterator[Proxy]:
    proxy = Proxy(command, directory, config, ports)
    try:
        yield proxy
    except BaseException:
        print(proxy.log())
        raise
    finally:
        proxy.stop()


def make_certificate(
    openssl: str, directory: Path, *, names: str = "DNS:localhost,IP:127.0.0.1", end: str = "20991231000000Z",
) -> Path:
    """Make a certificate that signs itself; return its file, which has its key too.

    Args:
        openssl: where the program is.
        directory: for the file.
        names: the subjectAltName.
        end: when it expires.
    """
    (directory / "index").touch()
    (directory / "ca.conf").write_text(_AUTHORITY.format(names=names))
    for command in (  # Only the command "ca" can sign what has expired, before OpenSSL 3.4.
        "req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key -out request",
        f"ca -batch -notext -selfsign -config ca.conf -keyfile key -in request -out certificate "
        f"-startdate 20200101000000Z -enddate {end}",
    ):
        subprocess.run([openssl, *command.split()], cwd=directory, check=True, capture_output=True)
    found = directory / "chat.pem"
    found.write_bytes((directory / "certificate").read_bytes() + (directory / "key").read_bytes())
    return found
