"""The shape of the package: its modules, what each stands on, and which are pure; tests/test_layers.py holds it."""

from __future__ import annotations

from pathlib import Path

import wsthread

PACKAGE = Path(wsthread.__file__).parent
TESTS = Path(__file__).parent
#: Each module by its name within the package, such as ``wire.frames``; a package within it has its own name.
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")}
MODULES = sorted(FILES)
#: The floors, the lowest first. A module imports from lower floors only, not from its own.
FLOORS: list[tuple[str, ...]] = [
    ("platform", "exceptions", "clock", "locks", "logs", "client_address", "outbox", "speedups", "client_socket",
     "callbacks", "history", "pacing", "wire", "servers.server", "bus", "bus.parcels", "bus.siblings"),
    ("stats", "registry", "errands", "bus.backplane", "bus.publishing", "bus.fields", "bus.redis_url", "wire.frames",
     "wire.deflate", "wire.origins", "transport", "housekeeper", "servers.gunicorn", "servers.werkzeug",
     "servers.uwsgi", "servers.waitress", "servers.wsgiref", "servers.cheroot", "servers.in_process",
     "servers.refused"),
    ("wire.messages", "wire.handshake", "servers", "tls", "bus.directory",
     "bus.peers", "bus.reading", "bus.redis_store"),
    ("wire.client_handshake", "wire.resume", "options", "snapshot", "bus.mesh", "bus.redis"),
    ("wire.protocol", "inbox", "deadlines", "overflow", "detach", "lifecycle", "bus.local"),
    ("ending", "client", "entries"),
    ("writing", "presence", "publisher"),
    ("sending",),
    ("control_frames",),
    ("receiving",),
    ("link",),
    ("connection",),
    ("addressing", "shutdown", "thread", "recovery"),
    ("fanout",),
    ("hub",),
    ("exchange",),
    ("manager",),
    ("handlers", "upgrader"),
    ("__init__",),
    ("testing", "configuration", "flask_contexts", "django_handshake", "django_scope", "prometheus"),
    ("flask_rules", "django_testing", "pytest_plugin"),
    ("flask", "django"),
    ("doctor", "doctor.findings", "doctor.visit", "commands.lines", "commands.target"),
    ("doctor.answers", "doctor.settings", "doctor.proxies", "doctor.machine", "doctor.opened"),
    ("doctor.gunicorn", "doctor.live", "commands.connect", "commands.bench", "commands.publish"),
    ("commands.doctor",),
    ("commands",),
    ("__main__",),
]
#: Bytes in, values out. The tests cover all of them, branches too.
PURE = [
    "exceptions", "wire", "wire.frames", "wire.deflate", "wire.messages", "wire.protocol", "wire.handshake",
    "wire.origins", "wire.client_handshake", "client_address", "outbox", "options", "deadlines", "ending", "overflow",
    "inbox", "entries", "bus", "bus.backplane", "bus.parcels", "bus.publishing", "bus.fields", "bus.reading",
    "bus.redis_url", "doctor.findings", "doctor.answers", "doctor.settings", "doctor.proxies", "history", "wire.resume",
]
#: Modules without a file of tests that is named after them, and why.
WITHOUT_NAMESAKE = {
    "__init__": "it passes on names that are tested where they are defined",
    "__main__": "it only calls commands",
    "doctor": "it is empty",
    "doctor.findings": "it has no behaviour but what the tests of its users compare",
    "wire": "it is empty",
    "bus": "it is empty",
    "bus.backplane": "it is a contract; the tests of the backplanes hold them to it",
    "servers.server": "its defaults are tested as those of the servers that have them",
}


def namesake(module: str) -> Path:
    """Return the file of the tests of a module."""
    return TESTS / f"test_{module.removeprefix('wire.').replace('.', '_')}.py"
